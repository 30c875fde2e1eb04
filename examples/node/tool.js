// Tools: what is on a shelf, and taking some of it. `node tool.js --port 50063`

import { serve } from './burnish.js'
import { Rejected, toolService } from './tools.js'

const item = { type: 'string', description: 'bolts, nuts or washers.' }

/** What this episode has left of an item: the task's data says how many there were. */
function left({ data, state }, name) {
  state.shelf ??= { ...data.shelf }
  if (!Object.hasOwn(state.shelf, name)) throw new Rejected(`there is no ${name}; there are ${Object.keys(state.shelf).join(', ')}`)
  return state.shelf[name]
}

serve({
  ToolService: toolService({
    count: {
      description: 'Count what is left of an item.',
      parameters: { type: 'object', properties: { item }, required: ['item'] },
      call: ({ item }, context) => ({ [item]: left(context, item) }),
    },
    take: {
      description: 'Take some of an item off the shelf.',
      parameters: { type: 'object', properties: { item, count: { type: 'integer', minimum: 1 } }, required: ['item', 'count'] },
      call: ({ item, count }, context) => {
        const there = left(context, item)
        if (count > there) throw new Rejected(`there are only ${there} ${item}`)
        context.state.shelf[item] -= count
        return `${context.state.shelf[item]} left`
      },
    },
  }, { ordered: true }),
})
