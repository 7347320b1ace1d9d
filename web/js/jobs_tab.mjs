/**
 * The sidebar tab: all runs as cards, and one run whole when its card is opened.
 */

import { button, make, setText, show } from './dom.mjs'
import { environment, watchEnvironment } from './environment.mjs'
import { pathRow } from './files.mjs'
import { duration, moment, share, withoutFolders } from './format.mjs'
import { RunPanel, stateBadge, titleOf } from './run_panel.mjs'
import { elapsed, isElsewhere, isLive } from './run_state.mjs'
import * as runs from './runs.mjs'
import { doingNow, locale, said, text } from './texts.mjs'

const FILTERS = {
  all: () => true,
  running: isLive,
  finished: ({ state }) => state === 'done' || state === 'stopped',
  failed: ({ state }) => state === 'failed'
}

let openRun = null // stays when the tab is closed and opened again
let current = null

/** Open a run in the tab, also while the tab is being opened. */
export function showRun(id) {
  openRun = id
  current?.draw()
}

export class JobsTab {
  /** `onload(run)` opens the run's workflow, `onremove(run)` takes it off the list, `onsetup()` opens the dialog. */
  constructor({ onload, onremove, onsetup }) {
    this.actions = { onload, onremove, onsetup }
    this.filter = 'all'
    this.wanted = ''
    this.cards = new Map()
    this.element = make('div', { class: 'musubi musubi-jobs' })
    this._makeList()
    this._ends = [runs.watchList(() => this.draw()), watchEnvironment(() => this.draw())]
    this._clock = setInterval(() => !openRun && this.draw(), 5000)
    current = this
    this.draw()
  }

  destroy() {
    clearInterval(this._clock)
    this._ends.forEach((end) => end())
    this._closeDetail()
    if (current === this) current = null
  }

  draw() {
    if (openRun && !runs.get(openRun) && runs.list().length) openRun = null
    if (openRun) this._drawDetail()
    else this._drawList()
  }

  // --------------------------------------------------------------------------------------------------------- list

  _makeList() {
    const filter = (name) =>
      make(
        'button',
        {
          type: 'button',
          class: 'musubi-chip',
          'data-filter': name,
          'aria-pressed': String(name === this.filter),
          onclick: () => this._setFilter(name)
        },
        text(`jobs.${name}`)
      )
    const search = make('input', {
      type: 'search',
      class: 'musubi-input',
      placeholder: text('jobs.search'),
      'aria-label': text('jobs.search')
    })
    search.addEventListener('input', () => {
      this.wanted = search.value.trim().toLowerCase()
      this.draw()
    })
    search.addEventListener('keydown', (event) => event.stopPropagation())
    this.notice = make(
      'div',
      { class: 'musubi-notice' },
      make('span', {}, text('idle.missing')),
      button({ symbol: 'download', text: text('setup.open'), kind: 'primary', onclick: this.actions.onsetup })
    )
    this.filters = make('div', { class: 'musubi-bar' }, ...Object.keys(FILTERS).map(filter))
    this.list = make('div', { class: 'musubi-cards', role: 'list' })
    this.empty = make('div', { class: 'musubi-empty' }, text('jobs.empty'))
    const head = make(
      'div',
      { class: 'musubi-head' },
      make('h2', {}, text('jobs.title')),
      button({ symbol: 'cog', label: text('setup.title'), kind: 'quiet', onclick: this.actions.onsetup })
    )
    this.listPage = make(
      'div',
      { class: 'musubi-listpage' },
      head,
      this.notice,
      search,
      this.filters,
      this.list,
      this.empty
    )
  }

  _setFilter(name) {
    this.filter = name
    for (const chip of this.filters.children) chip.setAttribute('aria-pressed', String(chip.dataset.filter === name))
    this.draw()
  }

  _drawList() {
    this._closeDetail()
    if (this.listPage.parentElement !== this.element) this.element.replaceChildren(this.listPage)
    show(this.notice, ['missing', 'broken', 'making'].includes(environment().state))
    const shown = runs.list().filter((run) => FILTERS[this.filter](run) && this._matches(run))
    show(this.empty, !shown.length)
    const ids = new Set(shown.map(({ id }) => id))
    for (const [id, card] of this.cards)
      if (!ids.has(id)) {
        card.element.remove()
        this.cards.delete(id)
      }
    shown.forEach((run, index) => {
      const card = this.cards.get(run.id) ?? this._addCard(run)
      if (this.list.children[index] !== card.element)
        this.list.insertBefore(card.element, this.list.children[index] ?? null)
      card.update(run)
    })
  }

  _matches(run) {
    return !this.wanted || `${titleOf(run)} ${run.id} ${run.message ?? ''}`.toLowerCase().includes(this.wanted)
  }

  _addCard(run) {
    const badge = make('span', {})
    const title = make('span', { class: 'musubi-title' }, titleOf(run))
    const facts = make('div', { class: 'musubi-facts' })
    const words = make('div', { class: 'musubi-caption' })
    const fill = make('div', { class: 'musubi-fill' })
    const bar = make('div', { class: 'musubi-progress' }, fill)
    const element = make(
      'div',
      { class: 'musubi-card', role: 'listitem' },
      make(
        'button',
        { type: 'button', class: 'musubi-open', onclick: () => showRun(run.id) },
        make('div', { class: 'musubi-head' }, title, badge),
        facts,
        bar,
        words
      )
    )
    let state = ''
    const update = (now) => {
      const key = `${now.state}${now.reused}${isElsewhere(now)}`
      if (state !== key) badge.replaceChildren(stateBadge(now))
      state = key
      element.dataset.state = now.state
      setText(facts, `${moment(now.started, locale())}  ·  ${duration(elapsed(now))}`)
      if (isLive(now)) setText(words, doingNow(now))
      else setText(words, now.error ? said(now.error.message) : withoutFolders(said(now.message)))
      show(bar, isLive(now))
      fill.style.width = `${(share(now.progress) ?? 0) * 100}%`
    }
    this.cards.set(run.id, { element, update })
    return this.cards.get(run.id)
  }

  // ------------------------------------------------------------------------------------------------------- detail

  _drawDetail() {
    const run = runs.get(openRun)
    if (this.detail?.id === openRun) {
      if (run) this._drawTools(run)
      return
    }
    this._closeDetail()
    const panel = new RunPanel({ verb: run?.verb ?? 'train', onsetup: this.actions.onsetup })
    const tools = make('div', { class: 'musubi-bar' })
    const back = button({ symbol: 'arrow-left', text: text('jobs.back'), kind: 'quiet', onclick: () => showRun(null) })
    this.detail = { id: openRun, panel, tools, stop: runs.watch(openRun, (whole) => panel.update(whole)), drawn: '' }
    this.element.replaceChildren(
      make('div', { class: 'musubi-detail' }, make('div', { class: 'musubi-head' }, back), panel.element, tools)
    )
    if (run) {
      panel.update(run)
      this._drawTools(run)
    }
    back.focus()
  }

  _drawTools(run) {
    const key = `${run.state} ${run.folder}`
    if (this.detail.drawn === key) return
    this.detail.drawn = key
    const { onload, onremove } = this.actions
    const removal = button({
      symbol: 'trash',
      text: text('jobs.remove'),
      label: text('jobs.remove_help'),
      kind: 'quiet danger',
      onclick: async () => {
        await onremove(run)
        showRun(null)
      }
    })
    this.detail.tools.replaceChildren(
      button({ symbol: 'sitemap', text: text('jobs.load'), label: text('jobs.load_help'), onclick: () => onload(run) }),
      isLive(run) ? '' : removal,
      make('div', { class: 'musubi-wide' }, pathRow(run.folder))
    )
  }

  _closeDetail() {
    this.detail?.stop()
    this.detail?.panel.destroy()
    this.detail = null
  }
}
