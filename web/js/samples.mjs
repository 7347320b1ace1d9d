/**
 * The pictures and videos that a run has made: the chosen one large, all of them as a strip below.
 *
 * The newest is shown until the person chooses another one; choosing the newest follows again.
 */

import { fileAddress } from './api.mjs'
import { make, show } from './dom.mjs'
import { text } from './texts.mjs'

const VIDEO = /\.(mp4|webm|mov|mkv)(?=$|[?&])/i
const PICTURE = /\.(png|jpe?g|webp|gif|avif)(?=$|[?&])/i

/**
 * What there is to see: previews first, then finished videos and images, each once. Where there is something finished,
 * what showed it in the making has had its time.
 */
export function mediaOf({ previews, artifacts }) {
  const shown = new Map()
  const finished = artifacts.filter(({ url }) => url && (VIDEO.test(url) || PICTURE.test(url)))
  for (const preview of previews.filter(({ passing }) => !passing || !finished.length)) {
    const url = preview.url ?? (preview.jpeg ? `data:image/jpeg;base64,${preview.jpeg}` : '')
    if (url) shown.set(url, { url, label: preview.label || label(preview) })
  }
  for (const { url, name, path } of finished) shown.set(url, { url, label: name ?? fileName(path) })
  return [...shown.values()]
}

function label({ step }) {
  return Number.isFinite(step) ? text('chart.step', { step }) : ''
}

/** The last part of a path, of whichever system. */
export function fileName(path) {
  return String(path ?? '')
    .split(/[\\/]/)
    .pop()
}

function picture(url, { large = false } = {}) {
  if (VIDEO.test(url)) {
    const video = make('video', {
      src: fileAddress(url),
      muted: true,
      loop: true,
      playsinline: true,
      preload: 'metadata',
      autoplay: large,
      controls: large
    })
    video.muted = true // the attribute alone does not silence an element made by a script
    if (large) {
      video.addEventListener('error', () =>
        video.replaceWith(make('div', { class: 'musubi-empty' }, text('samples.gone')))
      )
    }
    return video
  }
  return make('img', {
    src: url.startsWith('data:') ? url : fileAddress(url),
    alt: '',
    loading: large ? 'eager' : 'lazy'
  })
}

export class Samples {
  constructor() {
    this.large = make('div', { class: 'musubi-large' })
    this.caption = make('div', { class: 'musubi-caption' })
    this.strip = make('div', { class: 'musubi-strip', role: 'listbox', 'aria-label': text('samples.all') })
    this.empty = make('div', { class: 'musubi-empty' }, text('samples.empty'))
    this.element = make('div', { class: 'musubi-samples' }, this.large, this.caption, this.strip, this.empty)
    this.chosen = null // null: the newest
    this.media = []
    this.drawn = null
  }

  update(run) {
    this.media = mediaOf(run)
    show(this.empty, !this.media.length)
    this._drawStrip()
    this._drawLarge()
  }

  _current() {
    return this.media.find(({ url }) => url === this.chosen) ?? this.media.at(-1)
  }

  _drawLarge() {
    const current = this._current()
    if (!current || current.url === this.drawn) return
    this.drawn = current.url
    this._swap(picture(current.url, { large: true }), current.url)
    this.caption.textContent = current.label
    for (const entry of this.strip.children)
      entry.setAttribute('aria-selected', String(entry.dataset.url === current.url))
  }

  /** The picture before stays until the next one can be drawn, so that previews follow each other without a flicker. */
  async _swap(next, url) {
    if (this.large.firstElementChild?.tagName === 'IMG' && next.tagName === 'IMG') {
      await next.decode().catch(() => {}) // a picture that cannot be shown is shown as broken
    }
    if (this.drawn === url) this.large.replaceChildren(next)
  }

  _drawStrip() {
    const urls = this.media.map(({ url }) => url)
    for (const entry of [...this.strip.children]) if (!urls.includes(entry.dataset.url)) entry.remove()
    const present = new Set([...this.strip.children].map((entry) => entry.dataset.url))
    for (const { url, label } of this.media) {
      if (present.has(url)) continue
      const entry = make(
        'button',
        {
          type: 'button',
          class: 'musubi-thumbnail',
          role: 'option',
          title: label,
          'aria-label': label,
          'aria-selected': 'false',
          'data-url': url
        },
        picture(url)
      )
      entry.addEventListener('click', () => this._choose(url))
      this.strip.append(entry)
      this.strip.scrollLeft = this.strip.scrollWidth
    }
    show(this.strip, this.media.length > 1)
  }

  _choose(url) {
    this.chosen = url === this.media.at(-1)?.url ? null : url
    this._drawLarge()
  }
}
