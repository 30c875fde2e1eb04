// Adds "Rollouts" to the navigation of Ray's dashboard, again whenever the page draws it anew.
'use strict'
const place = () => {
  if (document.getElementById('burnish-rollouts')) return
  const logs = [...document.querySelectorAll('a[href="#/logs"], a[href$="#/logs"]')].find((link) => link.closest('nav, header, div'))
  if (!logs) return
  const ours = logs.cloneNode(true)
  ours.id = 'burnish-rollouts'
  ours.href = 'rollouts'
  ours.removeAttribute('aria-current')
  const text = document.createTreeWalker(ours, NodeFilter.SHOW_TEXT).nextNode()
  if (text) text.data = 'Rollouts'
  const item = logs.parentElement.children.length === 1 ? logs.parentElement : logs
  if (item === logs) logs.after(ours)
  else {
    const copy = item.cloneNode(false)
    copy.append(ours)
    item.after(copy)
  }
}
new MutationObserver(place).observe(document.documentElement, { childList: true, subtree: true })
place()
