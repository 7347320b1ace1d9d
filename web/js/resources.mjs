/**
 * What a run spends of the machine: the last value of each resource and a small line of its course.
 */

import { make, setText } from './dom.mjs'
import { memory, short } from './format.mjs'
import { text, textOr } from './texts.mjs'

const WIDTH = 100
const HEIGHT = 20
const SVG = 'http://www.w3.org/2000/svg'
const SHOWN = 240 // points, the newest
const BESIDE = /_(total|peak)_mib$/ // said beside their resource, no line of their own

export class Resources {
  constructor() {
    this.element = make('div', { class: 'musubi-resources' })
    this.rows = new Map()
  }

  /** Forget what another run spent. */
  clear() {
    this.rows.clear()
    this.element.replaceChildren()
  }

  /** Show these series: name with its unit → [[epoch seconds, value], …]. */
  update(resources) {
    for (const [name, series] of Object.entries(resources)) {
      if (!series.length || BESIDE.test(name)) continue
      const row = this.rows.get(name) ?? this._add(name)
      const total = resources[name.replace('_mib', '_total_mib')]?.at(-1)?.[1]
      const value = series.at(-1)[1]
      setText(row.value, total ? `${memory(value)} / ${memory(total)}` : amount(name, value))
      const peak = resources[name.replace('_mib', '_peak_mib')]?.at(-1)?.[1]
      row.value.title = peak ? text('resource.peak', { value: memory(peak) }) : ''
      row.line.setAttribute('points', outline(series.slice(-SHOWN), total))
    }
  }

  _add(name) {
    const line = document.createElementNS(SVG, 'polyline')
    const picture = document.createElementNS(SVG, 'svg')
    picture.setAttribute('viewBox', `0 0 ${WIDTH} ${HEIGHT}`)
    picture.setAttribute('preserveAspectRatio', 'none')
    picture.setAttribute('aria-hidden', 'true')
    picture.append(line)
    const value = make('span', { class: 'musubi-resource-value' })
    const label = textOr(`resource.${name}`, name.replace(/_mib$|_percent$/, '').replaceAll('_', ' '))
    this.element.append(
      make('div', { class: 'musubi-resource' }, make('span', { class: 'musubi-muted' }, label), value, picture)
    )
    const row = { value, line }
    this.rows.set(name, row)
    return row
  }
}

function amount(name, value) {
  if (name.endsWith('_mib')) return memory(value)
  return name.endsWith('_percent') ? `${Math.round(value)} %` : short(value)
}

/** The points of a line from 0 (bottom) to the highest value or to `total` (top). */
function outline(series, total) {
  const top = total ?? Math.max(...series.map(([, value]) => value), 1e-9) * 1.1
  const span = Math.max(series.length - 1, 1)
  return series
    .map(
      ([, value], index) =>
        `${((index / span) * WIDTH).toFixed(1)},${(HEIGHT - 1 - (value / top) * (HEIGHT - 2)).toFixed(1)}`
    )
    .join(' ')
}
