/**
 * The part of the setup dialog that makes the small models and clips, on which every shipped workflow runs as it is.
 */

import { server } from './api.mjs'
import { button, make, setText, show } from './dom.mjs'
import { share } from './format.mjs'
import { isLive } from './run_state.mjs'
import * as runs from './runs.mjs'
import { doingNow, said, text } from './texts.mjs'

/** `{ element, update(ready), destroy() }`. */
export function demoModels() {
  const fill = make('div', { class: 'musubi-fill' })
  const bar = make('div', { class: 'musubi-progress', role: 'progressbar', 'aria-label': text('demo.title') }, fill)
  const words = make('div', { class: 'musubi-facts', 'aria-live': 'polite' })
  const start = button({ symbol: 'box', text: text('demo.make'), onclick: begin })
  const element = make(
    'section',
    { class: 'musubi-demo' },
    make('h3', {}, text('demo.title')),
    make('p', { class: 'musubi-muted' }, text('demo.words')),
    make('div', { class: 'musubi-bar' }, start, words),
    bar
  )
  let ready = false

  async function begin() {
    try {
      await server.makeDemo()
    } catch (error) {
      setText(words, said(`${error.message} ${error.hint}`))
    }
  }

  function draw() {
    const run = runs.list().find(({ verb }) => verb === 'demo')
    const live = Boolean(run) && isLive(run)
    show(bar, live)
    start.disabled = !ready || live
    if (!run) return
    fill.style.width = `${(share(run.progress) ?? 0) * 100}%`
    const ended = {
      done: text('demo.done'),
      failed: `${said(run.error?.message)} ${said(run.error?.hint)}`,
      stopped: text('state.stopped')
    }
    setText(words, live ? doingNow(run) : (ended[run.state] ?? ''))
  }

  const destroy = runs.watchList(draw)
  return {
    element,
    destroy,
    update(isReady) {
      ready = isReady
      draw()
    }
  }
}
