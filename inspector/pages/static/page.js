// Live pages fetch themselves and take over what changed. A filter hides the rows without its words.
// Keys: j and k go down and up the rows, Enter opens, / searches.
'use strict'
const rows = () => [...document.querySelectorAll('[data-row]:not([hidden]) a:first-of-type')]

document.addEventListener('keydown', (event) => {
  if (event.ctrlKey || event.metaKey || event.altKey) return
  if (/^(INPUT|SELECT|TEXTAREA)$/.test(document.activeElement.tagName)) {
    if (event.key === 'Escape') document.activeElement.blur()
    return
  }
  if (event.key === '/') {
    const search = document.querySelector('[data-search]')
    if (search) {
      event.preventDefault()
      search.focus()
    }
  }
  if (event.key === 'j' || event.key === 'k') {
    const all = rows()
    const at = all.indexOf(document.activeElement)
    const next = all[event.key === 'j' ? at + 1 : at - 1] ?? (at < 0 ? all[0] : undefined)
    next?.focus()
  }
})

document.addEventListener('change', (event) => {
  if (event.target.tagName === 'SELECT' && event.target.form) event.target.form.requestSubmit()
})

document.addEventListener('input', (event) => {
  if (event.target.dataset.filter === undefined) return
  const words = event.target.value.toLowerCase().split(/\s+/)
  for (const row of document.querySelectorAll('[data-row]')) {
    const said = row.textContent.toLowerCase()
    row.hidden = !words.every((word) => said.includes(word))
  }
})

const busy = () =>
  document.hidden || document.activeElement.closest('form, [data-row]') || document.querySelector('details[open], input:checked') || getSelection().type === 'Range'

async function refresh() {
  if (!busy()) {
    try {
      const answer = await fetch(location.href, { headers: { accept: 'text/html' } })
      if (answer.ok) {
        const page = new DOMParser().parseFromString(await answer.text(), 'text/html')
        const [now, then] = [document.querySelector('main'), page.querySelector('main')]
        if (then && !busy() && now.innerHTML !== then.innerHTML) now.replaceWith(document.adoptNode(then))
        if (!page.body.dataset.live) return
      }
    } catch {} // the server is gone for a moment; the next time tells
  }
  setTimeout(refresh, 1000 * Number(document.body.dataset.live))
}
if (document.body.dataset.live) setTimeout(refresh, 1000 * Number(document.body.dataset.live))
