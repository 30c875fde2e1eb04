// A verifier and an environment that behave or misbehave as they are asked, over the example's own files; served by the tests.

import { appendFileSync, existsSync, writeFileSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { dirname, join, resolve } from 'node:path'
import { setTimeout as sleep } from 'node:timers/promises'

import { serve } from './burnish.js'
import { environmentService } from './environments.js'
import { verifierService } from './verifiers.js'

async function verify({ data, env_reward, messages, task }, signal) {
  if (data.do === 'raise') throw new RangeError('no verdict')
  if (data.do === 'nan') return { score: NaN }
  if (data.do === 'word') return { score: 'good' }
  if (data.do === 'half') return { score: 1, labels: { said: '🎲'.slice(0, 1) } }
  if (data.do === 'sleep') {
    writeFileSync(data.file, 'started')
    try {
      await sleep(data.s * 1000, undefined, { signal })
    } catch (error) {
      writeFileSync(data.file, 'cancelled')
      throw error
    }
  }
  return { score: env_reward, parts: { messages: messages.length }, labels: { expected: task.id } }
}

class Puppet {
  constructor({ file, broken }, signal) {
    if (broken) throw new Error('no bench')
    this.file = resolve(tmpdir(), file)
    this.note = (what) => file && appendFileSync(this.file, `${what}\n`)
    this.signal = signal
    this.note('made')
  }

  reset(seed, { task, attemptId }) {
    this.steps = 0
    const schema = { type: 'function', function: { name: 'measure', description: '', parameters: { type: 'object' } } }
    const data = { seed: Number(seed), told: attemptId, task: task && { id: task.id, ...task.data } }
    const messages = [{ role: 'system', content: 'Do as told.' }, { role: 'user', content: 'begin' }]
    return { messages, info: { tools: [schema], data } }
  }

  async step(text) {
    this.note(`step ${++this.steps}`)
    const [word, rest] = text.split(' ')
    if (word === 'raise') throw new Error('the gauge is broken')
    if (word === 'sleep') {
      for (const until = Date.now() + 1000 * rest; Date.now() < until && !this.signal.aborted; ) await sleep(10)
      this.note(this.signal.aborted ? 'cancelled' : 'slept')
    }
    if (word === 'hold') {
      while (!existsSync(join(dirname(this.file), `${rest}.go`)) && !this.signal.aborted) await sleep(10)
      this.note(this.signal.aborted ? 'cancelled' : 'slept')
    }
    return {
      messages: [{ role: 'user', content: `${this.steps}: ${text}` }],
      reward: word === 'nan' ? NaN : 0.25,
      terminated: word === 'end',
      truncated: word === 'truncate',
      info: { reward_parts: { steps: 0.25 }, metrics: { steps: this.steps }, labels: { said: word } },
    }
  }

  close() {
    this.note('closed')
  }
}

serve({
  VerifierService: verifierService({ 'test/puppet-v1': { description: 'Does what data.do says.', verify } }),
  EnvironmentService: environmentService({
    'test/Puppet-v0': {
      description: 'Counts its steps and does what it is told.',
      kwargs: { file: '', broken: false },
      make: (kwargs, signal) => new Puppet(kwargs, signal),
    },
  }),
})
