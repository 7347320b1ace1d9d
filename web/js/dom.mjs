/**
 * Making elements without a framework. Knows nothing of runs or of ComfyUI.
 */

/**
 * An element with attributes, listeners (`onclick: …`) and children; a text becomes a text node, null is left out.
 */
export function make(tag, attributes = {}, ...children) {
  const element = document.createElement(tag)
  for (const [name, value] of Object.entries(attributes)) {
    if (value === null || value === undefined || value === false) continue
    if (name.startsWith('on')) element.addEventListener(name.slice(2), value)
    else if (name === 'class') element.className = value
    else element.setAttribute(name, value === true ? '' : value)
  }
  element.append(...children.filter((child) => child !== null && child !== undefined))
  return element
}

/** An icon of the PrimeIcons font that ComfyUI brings along; a screen reader does not see it. */
export function icon(name) {
  return make('i', { class: `pi pi-${name}`, 'aria-hidden': 'true' })
}

/** A button with an icon, a text, or both. Without a text, `label` is what a screen reader and a tooltip say. */
export function button({ symbol, text, label, kind = '', onclick }) {
  return make(
    'button',
    {
      type: 'button',
      class: `musubi-button ${kind}`.trim(),
      title: label ?? null,
      'aria-label': label ?? null,
      onclick
    },
    symbol ? icon(symbol) : null,
    text ? make('span', {}, text) : null
  )
}

/** Change a text only where it differs, so that a selection in it and the layout survive. */
export function setText(element, text) {
  if (element.textContent !== text) element.textContent = text
}

/** Show or hide. */
export function show(element, visible) {
  element.hidden = !visible
}

/** Load a style sheet that lies beside the scripts, once. */
export function useStyle(path) {
  const href = new URL(path, import.meta.url).href
  if (document.querySelector(`link[href="${href}"]`)) return
  document.head.append(make('link', { rel: 'stylesheet', href }))
}

/** Copy a text; where the page may not use the clipboard (plain http from another machine), through a text area. */
export async function copyText(text) {
  if (navigator.clipboard && window.isSecureContext) {
    await navigator.clipboard.writeText(text)
    return
  }
  const area = make('textarea', { class: 'musubi-offscreen' })
  area.value = text
  document.body.append(area)
  area.select()
  document.execCommand('copy')
  area.remove()
}
