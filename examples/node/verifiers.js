// VerifierService over plain functions. Nothing in here is about your task: see verifier.js.

import { batched, CONTRACT, decodeJson, decodeMessage, Fault } from './burnish.js'
import { finite, finiteValues, SERVER_VERSION, unary, wellFormed } from './burnish.js'

/**
 * The methods of VerifierService. verifiers: `{ 'my-team/right-v1': { description, verify } }`, where `verify(episode, signal)` returns
 * `{ score, parts, labels, turns, explanation }` or a promise of it; all but the score may be left out. turns: a value for each turn of the
 * policy, in order, for credit per turn. explanation: why this score, for people. What it throws is a failure of the verifier, never a score of 0.
 */
export function verifierService(verifiers) {
  const ids = Object.keys(verifiers)

  async function handle(request, signal) {
    const id = request.verifier || (ids.length === 1 ? ids[0] : '')
    if (!ids.includes(id)) throw new Fault('NOT_FOUND', `verifier '${request.verifier}' is not served here, only ${ids.join(', ')}`)
    const { score, parts, labels, turns = [], explanation = '' } = await verifiers[id].verify(decodeEpisode(request), signal)
    return {
      score: finite(score, 'score'),
      parts: finiteValues(parts, 'part'),
      labels: wellFormed(labels),
      turns: turns.map((value, i) => finite(value, `turn ${i}`)),
      explanation: String(explanation).toWellFormed(),
    }
  }

  return {
    Describe: unary(() => ({
      contract: CONTRACT,
      server_version: SERVER_VERSION,
      verifiers: ids.map((id) => ({ id, description: verifiers[id].description })),
    })),
    Verify: unary(handle),
    VerifyStream: batched(handle),
  }
}

/**
 * The fields of VerifyRequest, its JSON decoded: `data` is the hidden truth, `messages` the whole conversation, `answer` the policy's last
 * words, or null when the episode was cut short before it answered.
 */
function decodeEpisode(request) {
  return {
    ...request,
    task: { ...request.task, data: decodeJson('task.data_json', request.task?.data_json) },
    data: decodeJson('data_json', request.data_json),
    messages: request.messages.map(decodeMessage),
    answer: request.answer ?? null,
  }
}
