// A verifier: is the last number in the policy's answer the right one? `node verifier.js --port 50061`

import { serve } from './burnish.js'
import { verifierService } from './verifiers.js'

function verify(episode) {
  const expected = episode.data.answer
  if (!Number.isInteger(expected)) throw new TypeError(`data.answer must be a whole number, not ${expected}`)
  const numbers = episode.answer?.match(/-?\d+/g) ?? [] // no answer, no number
  const predicted = numbers.at(-1) ?? 'none'
  return {
    score: predicted === String(expected) ? 1 : 0,
    parts: { brief: numbers.length === 1 ? 1 : 0 },
    labels: { expected: String(expected), predicted: predicted.slice(0, 20) },
  }
}

serve({
  VerifierService: verifierService({
    'node-example/answer-v1': { description: 'Whether the last number said is the right one.', verify },
  }),
})
