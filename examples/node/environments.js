// EnvironmentService over plain classes: one session per episode, every call safe to repeat. Nothing in here is about your task: see
// environment.js.

import { batched, CONTRACT, decodeJson, decodeMessage, encodeJson, encodeMessage, Fault } from './burnish.js'
import { finite, finiteValues, SERVER_VERSION, unary, wellFormed } from './burnish.js'

const IDLE_S = 600
const MAX_SESSIONS = 4096

/**
 * The methods of EnvironmentService. environments: `{ 'my-team/Riddles-v0': { description, kwargs, make } }`, where `make(kwargs, signal)`
 * returns a fresh environment and `kwargs` are its defaults. An environment has
 *
 *   reset(seed, { task, attemptId }) -> { messages, info }
 *   step(text) -> { messages, reward, terminated, truncated, info }
 *   close(), if it holds something
 *
 * plain or as promises. seed is a BigInt. What the policy writes is never an error; what the environment throws ends the episode.
 */
export function environmentService(environments, { idleS = IDLE_S, maxSessions = MAX_SESSIONS } = {}) {
  const ids = Object.keys(environments)
  const sessions = new Map() // episode_id -> Session

  function open(request) {
    if (sessions.size >= maxSessions) throw new Fault('RESOURCE_EXHAUSTED', `${sessions.size} episodes are open; close some of them`)
    const id = request.environment || (ids.length === 1 ? ids[0] : '')
    if (!ids.includes(id)) throw new Fault('NOT_FOUND', `environment '${request.environment}' is not served here, only ${ids.join(', ')}`)
    const given = decodeJson('kwargs_json', request.kwargs_json)
    for (const key of Object.keys(given)) {
      if (!Object.hasOwn(environments[id].kwargs, key)) throw new Fault('INVALID_ARGUMENT', `environment '${id}' has no kwarg '${key}'`)
    }
    const session = new Session(id, request, (signal) => environments[id].make({ ...environments[id].kwargs, ...given }, signal))
    sessions.set(request.episode_id, session)
    session.began.then(({ error }) => error && sessions.get(request.episode_id) === session && end(request.episode_id)) // as if never asked
    return session
  }

  function end(episodeId) {
    sessions.get(episodeId)?.close()
    sessions.delete(episodeId)
  }

  async function reset(request) {
    if (!request.episode_id) throw new Fault('INVALID_ARGUMENT', 'episode_id must be set, and unique to this episode')
    const session = sessions.get(request.episode_id) ?? open(request)
    if (JSON.stringify(session.request) !== JSON.stringify(request)) {
      throw new Fault('FAILED_PRECONDITION', `episode '${request.episode_id}' is open already, from another reset; ids must be unique`)
    }
    return session.wait(session.began)
  }

  async function step(request) {
    const session = sessions.get(request.episode_id)
    if (!session) throw new Fault('NOT_FOUND', `episode '${request.episode_id}' is not open here: it never began, was closed, or expired`)
    return session.wait(session.step(Number(request.step_id), request.action))
  }

  async function close(request) {
    end(request.episode_id)
    return {}
  }

  const calls = { reset, step, close }

  async function handle(request) {
    if (!request.call) throw new Fault('INVALID_ARGUMENT', 'a request is a reset, a step or a close')
    return { [request.call]: await calls[request.call](request[request.call]) }
  }

  setInterval(() => {
    for (const [id, session] of sessions) if (session.isIdle(idleS)) end(id)
  }, idleS * 250).unref()

  return {
    Describe: unary(() => ({
      contract: CONTRACT,
      server_version: SERVER_VERSION,
      environments: ids.map((id) => ({ id, description: environments[id].description, kwargs_json: encodeJson(environments[id].kwargs) })),
      idle_timeout_s: idleS,
      max_sessions: maxSessions,
    })),
    Reset: unary(reset),
    Step: unary(step),
    Close: unary(close),
    EpisodeStream: batched(handle),
  }
}

/**
 * One episode. A call that passes its deadline goes on here, and asking again gets its answer. Answers are kept as `{ response }` or
 * `{ error }`, so that nobody needs to be waiting for them.
 */
class Session {
  constructor(id, request, make) {
    this.request = request
    this.steps = 0
    this.action = ''
    this.last = undefined // the outcome of the last call, once it has one
    this.waiting = 0
    this.used = Date.now()
    this.aborter = new AbortController()
    this.closed = new Promise((resolve) => {
      this.aborter.signal.addEventListener('abort', () => resolve({ error: this.aborter.signal.reason }), { once: true })
    })
    this.began = this.answer = this.#run(async () => {
      this.env = await make(this.aborter.signal)
      const options = { task: decodeTask(request.task), attemptId: request.attempt_id || request.episode_id }
      const { messages, info } = await this.env.reset(BigInt(request.seed), options)
      return { messages: messages.map(encodeMessage), info: encodeInfo(info), environment: id }
    })
  }

  /** The answer to a step, which may be the last one again. */
  step(stepId, action) {
    const refuse = (why) => new Fault('FAILED_PRECONDITION', `episode '${this.request.episode_id}': ${why}`)
    const before = this.steps ? `step ${this.steps - 1}` : 'its reset'
    if (this.steps && stepId === this.steps - 1) {
      if (action !== this.action) throw refuse(`step ${stepId} was taken already, with another action`)
      return this.answer
    }
    if (stepId !== this.steps) throw refuse(`step ${stepId} is out of order: the next is step ${this.steps}`)
    if (!this.last) throw refuse(`${before} is still at work; ask for its answer before step ${this.steps}`)
    if (this.last.error) throw refuse(`${before} failed; begin another episode. ${this.last.error.message}`)
    if (this.last.response.terminated || this.last.response.truncated) throw refuse(`the episode ended with ${before}; begin another one`)
    this.steps += 1
    this.action = action
    this.answer = this.#run(async () => {
      const { messages, reward, terminated, truncated, info } = await this.env.step(action)
      return { messages: messages.map(encodeMessage), reward: finite(reward, 'reward'), terminated, truncated, info: encodeInfo(info) }
    })
    return this.answer
  }

  async wait(answer) {
    this.waiting += 1
    const { response, error } = await answer
    this.waiting -= 1
    this.used = Date.now()
    if (error) throw error
    return response
  }

  isIdle(seconds) {
    return !this.waiting && Date.now() - this.used > seconds * 1000
  }

  /** Tell the environment through its signal, and close it once it has nothing at work. */
  close() {
    this.aborter.abort(new Fault('CANCELLED', `episode '${this.request.episode_id}' was closed`))
    this.work.then(() => this.env?.close?.()).catch((error) => console.error(`closing episode ${this.request.episode_id}:`, error))
  }

  #run(call) {
    this.last = undefined
    this.work = call().then((response) => ({ response }), (error) => ({ error }))
    return Promise.race([this.work, this.closed]).then((outcome) => (this.last = outcome))
  }
}

function decodeTask(task) {
  return task && { ...task, data: decodeJson('task.data_json', task.data_json), prompt: task.prompt.map(decodeMessage) }
}

function encodeInfo({ tools = [], reward_parts, metrics, labels, data } = {}) {
  return {
    tools_json: tools.map(encodeJson),
    reward_parts: finiteValues(reward_parts, 'reward part'),
    metrics: finiteValues(metrics, 'metric'),
    labels: wellFormed(labels),
    data_json: encodeJson(data),
  }
}
