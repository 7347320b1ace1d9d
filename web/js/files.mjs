/**
 * What a run has left: its folder and its files, each to download or to copy its path.
 */

import { fileAddress } from './api.mjs'
import { button, copyText, icon, make, show } from './dom.mjs'
import { fileName } from './samples.mjs'
import { text, textOr } from './texts.mjs'

const SYMBOLS = { lora: 'star', video: 'video', image: 'image', state: 'replay', latent: 'box' }

/** A path with a button that copies it. */
export function pathRow(path) {
  return make(
    'div',
    { class: 'musubi-path' },
    make('code', { title: path }, path),
    button({ symbol: 'copy', label: text('files.copy'), kind: 'quiet', onclick: () => copyText(path) })
  )
}

/** The view of a run's files: `{ element, update(run) }`. */
export function files() {
  const folder = make('div', {})
  const list = make('ul', { class: 'musubi-files' })
  const empty = make('div', { class: 'musubi-empty' }, text('files.empty'))
  const element = make('div', { class: 'musubi-filespage' }, folder, list, empty)
  let drawn = ''
  return {
    element,
    update(run) {
      const key = `${run.folder} ${run.artifacts.map(({ path }) => path).join()}`
      if (key === drawn) return
      drawn = key
      show(empty, !run.artifacts.length)
      folder.replaceChildren(run.folder ? pathRow(run.folder) : '')
      list.replaceChildren(...run.artifacts.toReversed().map(row))
    }
  }
}

function row({ kind, path, name, url }) {
  const title = name ?? fileName(path)
  const key = kind.toLowerCase().replaceAll(' ', '_')
  return make(
    'li',
    {},
    icon(SYMBOLS[key] ?? 'file'),
    make('span', { class: 'musubi-kind' }, textOr(`artifact.${key}`, kind)),
    url
      ? make('a', { href: fileAddress(url), download: title, title: path }, title)
      : make('span', { title: path }, title),
    button({ symbol: 'copy', label: text('files.copy'), kind: 'quiet', onclick: () => copyText(path) })
  )
}
