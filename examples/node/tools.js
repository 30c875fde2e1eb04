// ToolService over plain functions: one session per episode, in which no call runs twice. Nothing in here is about your task: see tool.js.

import { batched, CONTRACT, decodeJson, encodeJson, Fault, SERVER_VERSION, unary } from './burnish.js'

const IDLE_S = 600
const MAX_SESSIONS = 4096
const REMEMBERED = 32 // answers of a session that are kept: those of one turn may all be lost together, and be asked for again
const REMEMBERED_CHARS = 1 << 20 // of them; the last one is kept, however long it is
const KNOWN = 1024 // calls of a session whose id is known, so that one whose answer is not kept is refused, and not run again

/** The policy got the call wrong; the text is what it reads. Example: `throw new Rejected("there is no shelf for 'boltz'")`. */
export class Rejected extends Error {}

/**
 * The methods of ToolService. tools: `{ count: { description, parameters, call } }`, where parameters is the JSON schema of the arguments, and
 * `call(args, context, signal)` returns the observation, a string or what JSON can carry, or a promise of it. context is `{ episodeId, seed,
 * data, state }`: of the task, and an object of the episode's own, in which tools keep what they have to remember. What a call throws is a
 * failure of the tool, but for `Rejected`. ordered: whether the calls of an episode must follow each other, as its state wants.
 */
export function toolService(tools, { ordered = false, idleS = IDLE_S, maxSessions = MAX_SESSIONS } = {}) {
  const sessions = new Map() // session_id -> Session

  async function handle(request, signal) {
    if (request.session_step === 'SESSION_STEP_OPEN') return open(request)
    if (request.session_step === 'SESSION_STEP_CLOSE') return end(request.session_id)
    if (!request.session_id) return run(request, { ...contextOf(request), state: {} }, signal)
    const session = sessions.get(request.session_id)
    if (!session) throw new Fault('NOT_FOUND', `session '${request.session_id}' is not open here: it never was, was closed, or expired`)
    if (!request.call_id) throw new Fault('INVALID_ARGUMENT', 'call_id must be set, and unique to this call within its session')
    return session.answer(request.call_id, (context, closed) => run(request, context, closed), request)
  }

  function open(request) {
    if (!sessions.has(request.session_id)) {
      if (sessions.size >= maxSessions) throw new Fault('RESOURCE_EXHAUSTED', `${sessions.size} sessions are open; close some of them`)
      sessions.set(request.session_id, new Session(contextOf(request)))
    }
    return { text: '' }
  }

  function end(sessionId) {
    sessions.get(sessionId)?.close(sessionId)
    sessions.delete(sessionId)
    return { text: '' }
  }

  async function run(request, context, signal) {
    const args = decodeJson('arguments_json', request.arguments_json)
    if (!Object.hasOwn(tools, request.tool)) return rejected(`there is no tool '${request.tool}'; there are ${Object.keys(tools).join(', ')}`)
    const { parameters, call } = tools[request.tool]
    const wrong = misfit(parameters, args)
    if (wrong) return rejected(`${request.tool}: ${wrong}`)
    try {
      return observation(request.tool, await call(args, context, signal))
    } catch (error) {
      if (error instanceof Rejected) return rejected(error.message)
      throw error
    }
  }

  setInterval(() => {
    for (const [id, session] of sessions) if (session.isIdle(idleS)) end(id)
  }, idleS * 250).unref()

  return {
    Describe: unary(() => ({
      contract: CONTRACT,
      server_version: SERVER_VERSION,
      tools: Object.entries(tools).map(([name, { description, parameters }]) => ({ name, description, parameters_json: encodeJson(parameters) })),
      sessions: true,
      idle_timeout_s: idleS,
      ordered,
    })),
    Call: unary(handle),
    CallStream: batched(handle),
  }
}

/** What one episode has open. A call that passes its deadline goes on here, and asking again gets its answer. */
class Session {
  constructor(context) {
    this.context = { ...context, state: {} }
    this.answers = new Map() // call_id -> the promise of its answer
    this.kept = new Map() // call_id -> how long its answer is, the oldest first
    this.forgotten = new Set() // call_id
    this.waiting = 0
    this.used = Date.now()
    this.aborter = new AbortController()
    this.closed = new Promise((_, reject) => {
      this.aborter.signal.addEventListener('abort', () => reject(this.aborter.signal.reason), { once: true })
    })
    this.closed.catch(() => {}) // nobody needs to be waiting
  }

  async answer(callId, run, request) {
    if (this.forgotten.has(callId)) {
      throw new Fault('FAILED_PRECONDITION', `call '${callId}' was answered long ago, and its answer is not kept any more`)
    }
    if (!this.answers.has(callId)) {
      const own = request.task_data_json ? { data: decodeJson('task_data_json', request.task_data_json) } : {}
      const work = run({ ...this.context, ...own }, this.aborter.signal)
      this.answers.set(callId, work)
      work.then((answer) => this.#keep(callId, lengthOf(answer)), () => this.#keep(callId, 0))
    }
    this.waiting += 1
    try {
      return await Promise.race([this.answers.get(callId), this.closed])
    } finally {
      this.waiting -= 1
      this.used = Date.now()
    }
  }

  /** Keep an answer, and forget the oldest ones where there are too many. */
  #keep(callId, length) {
    this.kept.set(callId, length)
    let all = [...this.kept.values()].reduce((sum, one) => sum + one, 0)
    for (const [oldest, its] of this.kept) {
      if (this.kept.size === 1 || (this.kept.size <= REMEMBERED && all <= REMEMBERED_CHARS)) break
      all -= its
      this.kept.delete(oldest)
      this.answers.delete(oldest)
      this.forgotten.add(oldest)
    }
    for (const id of this.forgotten) {
      if (this.forgotten.size <= KNOWN) break
      this.forgotten.delete(id)
    }
  }

  isIdle(seconds) {
    return !this.waiting && Date.now() - this.used > seconds * 1000
  }

  close(sessionId) {
    this.aborter.abort(new Fault('CANCELLED', `session '${sessionId}' was closed`))
  }
}

function contextOf(request) {
  return { episodeId: request.episode_id, seed: BigInt(request.task_seed), data: decodeJson('task_data_json', request.task_data_json) }
}

function lengthOf({ text = '', rejected = '', json = '' }) {
  return text.length + rejected.length + json.length
}

function rejected(text) {
  return { rejected: text.toWellFormed() }
}

function observation(name, value) {
  if (value === undefined || value === null) throw new TypeError(`tool '${name}' returned nothing; return what the policy is to read`)
  return typeof value === 'string' ? { text: value.toWellFormed() } : { json: encodeJson(value) }
}

/** What is wrong with the arguments of a call, or nothing: required ones, names, types, choices and bounds of their JSON schema. */
function misfit({ properties = {}, required = [] }, args) {
  const missing = required.find((name) => !Object.hasOwn(args, name))
  if (missing) return `argument '${missing}' is missing`
  for (const [name, value] of Object.entries(args)) {
    if (!Object.hasOwn(properties, name)) return `there is no argument '${name}', only ${Object.keys(properties).join(', ')}`
    const { type, enum: choices, minimum = -Infinity, maximum = Infinity } = properties[name]
    if (type && !isA[type](value)) return `argument '${name}' must be of type ${type}`
    if (choices && !choices.includes(value)) return `argument '${name}' must be one of ${choices.join(', ')}`
    if (value < minimum || value > maximum) return `argument '${name}' must be from ${minimum} to ${maximum}`
  }
}

const isA = {
  string: (value) => typeof value === 'string',
  integer: (value) => Number.isSafeInteger(value),
  number: (value) => typeof value === 'number',
  boolean: (value) => typeof value === 'boolean',
  array: (value) => Array.isArray(value),
  object: (value) => value !== null && typeof value === 'object' && !Array.isArray(value),
}
