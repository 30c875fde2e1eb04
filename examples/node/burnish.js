// A gRPC server that speaks burnish.v1: every method as a unary call and as a batched stream, with deadlines, cancellation, health,
// reflection, a ready line on stdout, and a drain on SIGTERM. Nothing in here is about your task: see verifier.js, tool.js and environment.js.

import { fileURLToPath } from 'node:url'
import { parseArgs } from 'node:util'

import grpc from '@grpc/grpc-js'
import protoLoader from '@grpc/proto-loader'
import { ReflectionService } from '@grpc/reflection'
import { HealthImplementation } from 'grpc-health-check'

export const CONTRACT = 'burnish.v1'
export const SERVER_VERSION = `burnish-node-example 1, node ${process.version}`

// Where burnish/v1/*.proto lie. When you copy this folder, copy proto/ too and change this line.
const PROTO = fileURLToPath(new URL('../../proto', import.meta.url))
const MAX_DEADLINE_S = 600
const MAX_IN_FLIGHT = 8192
const MAX_MESSAGE_BYTES = 64 * 1024 * 1024
const BATCH_ITEMS = 512
const LEAVE_MS = 5000
const DRAIN_S = 10

const schemas = protoLoader.loadSync(['verifier', 'tool', 'environment'].map((name) => `burnish/v1/${name}.proto`), {
  includeDirs: [PROTO],
  keepCase: true,
  longs: String, // a seed has 64 bits, a number only 53
  enums: String,
  defaults: true,
  oneofs: true,
})

/** An error with one of gRPC's status codes. Example: `new Fault('NOT_FOUND', "no environment 'a/B-v0'")`. */
export class Fault extends Error {
  constructor(status, message) {
    super(message)
    this.code = grpc.status[status]
  }
}

/** The object in a field called *_json; an empty field is an empty object. */
export function decodeJson(field, text) {
  let value
  try {
    value = text ? JSON.parse(text) : {}
  } catch (error) {
    throw new Fault('INVALID_ARGUMENT', `${field}: not valid JSON: ${error.message}`)
  }
  if (value === null || typeof value !== 'object' || Array.isArray(value)) {
    throw new Fault('INVALID_ARGUMENT', `${field}: must be a JSON object`)
  }
  return value
}

/** The text for a field called *_json. JSON.stringify would turn NaN into null without a word. */
export function encodeJson(value = {}) {
  return JSON.stringify(value, (key, item) => (typeof item === 'number' ? finite(item, key) : item))
}

/** The number, or a fault when there is none: a wrong number must never arrive as a 0. */
export function finite(value, what) {
  if (typeof value !== 'number' || !Number.isFinite(value)) {
    throw new Fault('DATA_LOSS', `${what} must be a finite number, not ${value}`)
  }
  return value
}

export function finiteValues(numbers = {}, what) {
  return Object.fromEntries(Object.entries(numbers).map(([name, value]) => [name, finite(value, `${what} ${name}`)]))
}

/** Half of a surrogate pair, as slicing a string can leave it, is no text and would make the whole message unreadable. */
export function wellFormed(texts = {}) {
  return Object.fromEntries(Object.entries(texts).map(([name, text]) => [name, String(text).toWellFormed()]))
}

/** `{ role: 'user', content: 'hello' }` from a message of the wire. */
export function decodeMessage(message) {
  if (message.role === 'ROLE_UNSPECIFIED') throw new Fault('INVALID_ARGUMENT', 'a message has no role')
  const parts = message.content === 'parts' ? message.parts.parts : [{ text: message.text }]
  return { ...message, role: message.role.slice('ROLE_'.length).toLowerCase(), content: parts.map((part) => part.text).join('') }
}

/** A message of the wire from `{ role: 'user', content: 'hello' }`. */
export function encodeMessage({ role, content }) {
  return { role: `ROLE_${role.toUpperCase()}`, text: content.toWellFormed() }
}

/** What `handle(request, signal)` comes to: `{ response }` or `{ error }`. The signal aborts once the caller gave up. */
async function settle(handle, request, timeoutS, aborter) {
  const seconds = timeoutS > 0 ? Math.min(timeoutS, MAX_DEADLINE_S) : MAX_DEADLINE_S
  const late = () => aborter.abort(new Fault('DEADLINE_EXCEEDED', `no result within ${Number(seconds.toPrecision(3))} s`))
  const timer = setTimeout(late, seconds * 1000)
  const givenUp = new Promise((_, reject) => {
    aborter.signal.addEventListener('abort', () => reject(aborter.signal.reason), { once: true })
  })
  try {
    const work = Promise.resolve().then(() => handle(request, aborter.signal))
    return { response: await Promise.race([work, givenUp]) }
  } catch (error) {
    if (error instanceof Fault) return { error: { code: error.code, message: error.message } }
    const trace = String(error?.stack ?? error).split('\n').slice(0, 3).join('\n')
    return { error: { code: grpc.status.UNKNOWN, message: trace } } // your code threw
  } finally {
    clearTimeout(timer)
  }
}

/** The unary form of a method. */
export function unary(handle) {
  return async (call, callback) => {
    const aborter = new AbortController()
    call.on('cancelled', () => aborter.abort(new Fault('CANCELLED', 'cancelled by the client')))
    const deadline = call.getDeadline()
    const seconds = deadline === Infinity ? 0 : Math.max((Number(deadline) - Date.now()) / 1000, 0.001)
    const { response, error } = await settle(handle, call.request, seconds, aborter)
    if (error) callback({ code: error.code, details: error.message })
    else callback(null, response)
  }
}

const openStreams = new Set()

/** The batched form of a method: items come many at a time and are answered in any order, each of them once. */
export function batched(handle) {
  return (call) => {
    const running = new Map() // request_id -> AbortController
    let results = []
    let scheduled = false
    let full = false
    let ended = false
    let stopping = false
    let gone = false
    let leaving

    const flush = () => {
      scheduled = false
      if (gone) return
      while (results.length && !full) {
        full = !call.write({ results: results.splice(0, BATCH_ITEMS) })
        if (full) call.once('drain', () => ((full = false), flush()))
      }
      if (ended && !running.size && !results.length) {
        openStreams.delete(drain)
        if (!stopping || leaving) return call.end()
        call.write({ stopping: true })
        leaving = setTimeout(() => call.end(), LEAVE_MS) // closing at once could reset the socket before the client has read that
      }
    }
    const soon = () => {
      if (!scheduled) setImmediate(flush) // whatever else is ready by then joins the batch
      scheduled = true
    }
    const answer = (requestId, outcome) => {
      results.push({ request_id: requestId, ...outcome })
      soon()
    }
    const refuse = (requestId, status, message) => answer(requestId, { error: { code: grpc.status[status], message } })
    const end = () => {
      ended = true
      soon()
    }
    const drain = () => {
      stopping = true
      end()
    }

    const take = async (item) => {
      const id = item.request_id
      if (item.kind === 'cancel') return running.get(id)?.abort(new Fault('CANCELLED', 'cancelled by the client'))
      if (item.kind !== 'request') return refuse(id, 'INVALID_ARGUMENT', 'an item is a request or a cancel')
      if (!id || running.has(id)) return refuse(id, 'INVALID_ARGUMENT', 'request_id must be set, and unique among the items in flight')
      if (running.size >= MAX_IN_FLIGHT) return refuse(id, 'RESOURCE_EXHAUSTED', `${running.size} items are in flight on this stream`)
      const aborter = new AbortController()
      running.set(id, aborter)
      const outcome = await settle(handle, item.request, item.timeout_s, aborter)
      running.delete(id)
      answer(id, outcome)
    }

    openStreams.add(drain)
    call.on('data', (message) => ended || message.items.forEach(take))
    call.on('end', end)
    call.on('error', () => {}) // the client went away; 'cancelled' says so too
    call.on('cancelled', () => {
      gone = true
      clearTimeout(leaving)
      openStreams.delete(drain)
      for (const aborter of running.values()) aborter.abort(new Fault('CANCELLED', 'the client went away'))
    })
  }
}

/** Serve `{ VerifierService: methods, … }` on 127.0.0.1 and --port (by default a free one) until SIGTERM or Ctrl-C. */
export function serve(services) {
  const { port: wanted } = parseArgs({ options: { port: { type: 'string', default: '0' } } }).values
  const host = '127.0.0.1' // there is neither TLS nor a token here
  const server = new grpc.Server({
    'grpc.max_send_message_length': MAX_MESSAGE_BYTES,
    'grpc.max_receive_message_length': MAX_MESSAGE_BYTES,
  })
  const names = Object.keys(services).map((name) => `${CONTRACT}.${name}`)
  for (const [name, methods] of Object.entries(services)) server.addService(schemas[`${CONTRACT}.${name}`], methods)
  const health = new HealthImplementation(Object.fromEntries(['', ...names].map((name) => [name, 'SERVING'])))
  health.addToServer(server)
  new ReflectionService(schemas, { services: names }).addToServer(server) // `burnish check HOST:PORT` asks what is here

  server.bindAsync(`${host}:${wanted}`, grpc.ServerCredentials.createInsecure(), (error, port) => {
    if (error) {
      console.error(`error: cannot listen on ${host}:${wanted}: ${error.message}`)
      process.exit(2)
    }
    console.log(JSON.stringify({ event: 'ready', address: `${host}:${port}`, services: names, pid: process.pid }))
  })

  const stop = () => {
    for (const name of ['', ...names]) health.setStatus(name, 'NOT_SERVING')
    for (const drain of openStreams) drain() // what is at work is still answered
    server.tryShutdown(() => process.exit(0))
    setTimeout(() => process.exit(1), DRAIN_S * 1000)
  }
  process.once('SIGTERM', stop)
  process.once('SIGINT', stop)
}
