// A verifier: is the last number in the policy's answer the right one? `node verifier.js --port 50061`

import { serve } from './burnish.js'
import { verifierService } from './verifiers.js'

function verify(episode) {
  const expected = episode.data.answer
  if (!Number.isInteger(expected)) throw new TypeError(`data.answer must be a whole number, not ${expected}`)
  const numbers = episode.answer?.match(/-?(?:\d{1,3}(?:,\d{3})+(?!\d)|\d+)(?:\.\d+)?/g) ?? [] // no answer, no number
  const said = numbers.at(-1) ?? 'none'
  const right = Number(said.replaceAll(',', '')) === expected // 7.0 and 07 are 7
  return {
    score: right ? 1 : 0,
    parts: { brief: numbers.length === 1 ? 1 : 0 },
    labels: { expected: String(expected), predicted: right ? String(expected) : said.slice(0, 20) },
    explanation: `the last number is ${said.slice(0, 20)}`,
  }
}

serve({
  VerifierService: verifierService({
    'node-example/answer-v1': { description: 'Whether the last number said is the right one.', verify },
  }),
})
