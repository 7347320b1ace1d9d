/**
 * A log with search: shows the end as it grows, stays where it is when the person has scrolled up.
 */

import { button, copyText, make, setText } from './dom.mjs'
import { highlighted, levelOf } from './log_lines.mjs'
import { text } from './texts.mjs'

const NEAR_THE_END = 24 // pixels

export class LogView {
  constructor() {
    this.search = make('input', {
      type: 'search',
      class: 'musubi-input',
      placeholder: text('log.search'),
      'aria-label': text('log.search')
    })
    this.count = make('span', { class: 'musubi-muted', 'aria-live': 'polite' })
    const copy = button({ symbol: 'copy', label: text('log.copy'), kind: 'quiet', onclick: () => copyText(this.text) })
    this.lines = make('div', {
      class: 'musubi-lines',
      tabindex: '0',
      role: 'log',
      'aria-live': 'off',
      'data-capture-wheel': 'true'
    })
    this.element = make(
      'div',
      { class: 'musubi-log' },
      make('div', { class: 'musubi-bar' }, this.search, this.count, copy),
      this.lines
    )
    this.text = ''
    this.search.addEventListener('input', () => this._redraw())
    this.search.addEventListener('keydown', (event) => event.stopPropagation()) // ComfyUI's own keys
  }

  /** Show this text; where it only grew, only the new lines are added. */
  update(text) {
    if (text === this.text) return
    const before = this.text
    const at = this.lines.scrollTop
    const atTheEnd = this.lines.scrollHeight - at - this.lines.clientHeight < NEAR_THE_END
    this.text = text
    if (before && before.endsWith('\n') && text.startsWith(before) && !this.search.value) {
      this._append(text.slice(before.length))
    } else {
      this._redraw()
    }
    this.lines.scrollTop = atTheEnd ? this.lines.scrollHeight : at
  }

  _redraw() {
    const wanted = this.search.value.trim()
    this.lines.replaceChildren()
    const hits = this._append(this.text, wanted)
    setText(this.count, wanted ? text('log.hits', { count: hits }) : '')
    this.lines.scrollTop = this.lines.scrollHeight
  }

  _append(text, wanted = '') {
    const lines = text
      .split('\n')
      .filter((line) => line && (!wanted || line.toLowerCase().includes(wanted.toLowerCase())))
    const drawn = lines.map((line) => {
      const parts = highlighted(line, wanted).map(([part, hit]) => (hit ? make('mark', {}, part) : part))
      return make('div', { class: `musubi-line ${levelOf(line)}` }, ...parts)
    })
    this.lines.append(...drawn)
    return lines.length
  }
}
