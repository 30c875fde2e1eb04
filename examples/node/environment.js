// An environment: guess a number by halving what is left. `node environment.js --port 50062`

import { Fault, serve } from './burnish.js'
import { environmentService } from './environments.js'

class Guess {
  constructor({ highest, guesses }) {
    if (!(Number.isInteger(highest) && highest > 1 && Number.isInteger(guesses) && guesses > 0)) {
      throw new Fault('INVALID_ARGUMENT', `highest must be above 1 and guesses above 0, not ${highest} and ${guesses}`)
    }
    this.highest = highest
    this.guesses = guesses
  }

  reset(seed) {
    this.number = 1 + Math.floor(random(seed) * this.highest)
    this.used = 0
    const text = `I think of a whole number from 1 to ${this.highest}. Guess it; you have ${this.guesses} guesses.`
    return { messages: [{ role: 'user', content: text }], info: { data: { number: this.number } } }
  }

  step(text) {
    this.used += 1
    const numbers = text.match(/-?(?:\d{1,3}(?:,\d{3})+(?!\d)|\d+)(?:\.\d+)?/g)
    const said = Number(numbers?.at(-1).replaceAll(',', '')) // 7.0 is 7; NaN when there is no number, which is a wasted guess
    const found = said === this.number
    const over = found || this.used === this.guesses
    const hint = Number.isNaN(said) ? 'Answer with a whole number.' : said < this.number ? 'Higher.' : 'Lower.'
    return {
      messages: over ? [] : [{ role: 'user', content: hint }],
      reward: found ? 1 : 0,
      terminated: found,
      truncated: over && !found,
      info: { reward_parts: { found: found ? 1 : 0 }, metrics: { guesses: this.used } },
    }
  }
}

/** A number from 0 to 1 that depends on the seed alone, so that all attempts at one task start equal. */
function random(seed) {
  const mixed = BigInt.asUintN(64, (seed + 0x9e3779b97f4a7c15n) * 0xbf58476d1ce4e5b9n)
  return Number(BigInt.asUintN(32, (mixed ^ (mixed >> 31n)) * 0x94d049bbn)) / 2 ** 32
}

serve({
  EnvironmentService: environmentService({
    'node-example/Guess-v0': {
      description: 'Guess a number; the answer is higher or lower.',
      kwargs: { highest: 20, guesses: 6 },
      make: (kwargs) => new Guess(kwargs),
    },
  }),
})
