// Live pages fetch themselves and take over what changed. A filter hides the rows without its words.
// Keys: j and k go down and up the rows, Enter opens, / searches; arrows, Home and End go from token to token.
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

const narrow = (box) => {
  const words = box.value.toLowerCase().split(/\s+/)
  for (const row of document.querySelectorAll('[data-row]')) {
    const said = row.textContent.toLowerCase()
    row.hidden = !words.every((word) => said.includes(word))
  }
}
// What was typed before this ran, and what a browser puts back when somebody returns to a page, is of no event.
const narrowed = () => { for (const box of document.querySelectorAll('[data-filter]')) if (box.value) narrow(box) }
narrowed()
addEventListener('pageshow', narrowed)

document.addEventListener('input', (event) => {
  if (event.target.dataset.filter !== undefined) narrow(event.target)
})

const show = (token) => {
  const numbers = document.querySelector('[data-numbers]')
  if (token && numbers) numbers.textContent = token.title.replaceAll('\n', ' · ')
}
const choose = (token) => {
  const view = token.closest('.tokens')
  view.querySelector('.t[tabindex]')?.removeAttribute('tabindex')
  token.tabIndex = -1 // the view is the one stop of the Tab key, and keeps its place
  token.focus()
}
const beside = (token, way) => {
  do token = token[way]
  while (token && !token.matches('.t'))
  return token
}
const inNextLine = (token, way) => {
  let found
  for (let one = beside(token, way); one; one = beside(one, way)) {
    if (one.offsetTop === token.offsetTop) continue
    if (found && one.offsetTop !== found.offsetTop) break
    const away = Math.abs(one.offsetLeft - token.offsetLeft)
    if (!found || away < Math.abs(found.offsetLeft - token.offsetLeft)) found = one
  }
  return found
}
const ARROWS = {
  ArrowRight: (token) => beside(token, 'nextElementSibling'),
  ArrowLeft: (token) => beside(token, 'previousElementSibling'),
  ArrowDown: (token) => inNextLine(token, 'nextElementSibling'),
  ArrowUp: (token) => inNextLine(token, 'previousElementSibling'),
  Home: (token) => token.parentElement.querySelector('.t'),
  End: (token) => [...token.parentElement.querySelectorAll('.t')].at(-1)
}
document.addEventListener('keydown', (event) => {
  const view = document.activeElement.closest('.tokens')
  if (!view || !(event.key in ARROWS) || event.ctrlKey || event.metaKey || event.altKey || event.shiftKey) return
  const kept = view.querySelector('.t[tabindex]')
  const next = kept && kept === document.activeElement ? ARROWS[event.key](kept) : (kept ?? view.querySelector('.t'))
  if (!next) return // at an end the page may scroll
  event.preventDefault()
  choose(next)
})
document.addEventListener('pointerover', (event) => show(event.target.closest('.t')))
document.addEventListener('focusin', (event) => show(event.target.closest('.t')))
document.addEventListener('click', (event) => {
  const token = event.target.closest('.tokens .t')
  if (token && getSelection().type !== 'Range') choose(token)
})

const busy = () =>
  document.hidden || document.activeElement.closest('form, [data-row]') || document.querySelector('details[open]:not([data-set]), input:checked') || getSelection().type === 'Range'

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
