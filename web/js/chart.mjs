/**
 * The curve of a training run on a canvas: loss raw and smoothed, learning rate, zoom, values under the pointer.
 *
 * Drag to look at a part, scroll to zoom once the chart has the focus (elsewhere scrolling belongs to ComfyUI's canvas
 * and to the page), double-click or Escape for the whole; arrow keys, + and - do the same. Draws what it is given.
 */

import { extent, moved, nearest, range, reduced, smooth, smoothing, ticks, within, zoomed } from './chart_maths.mjs'
import { make } from './dom.mjs'
import { marks, short } from './format.mjs'
import { text } from './texts.mjs'

const EDGE = { left: 46, right: 52, top: 10, bottom: 22 }
const ZOOM = 1.25
const OUTLIERS = 0.005

/** The curves of a run: which series, on which axis, in which colour (a custom property of the style sheet). */
function curvesOf(metrics) {
  const raw = metrics['loss/current'] ?? metrics.loss ?? []
  const rateName = Object.keys(metrics).find((name) => name.startsWith('lr/'))
  const curves = [
    { label: text('chart.raw'), points: raw, axis: 'left', colour: '--musubi-raw', width: 1 },
    {
      label: text('chart.smooth'),
      points: smooth(raw, smoothing(raw.length)),
      axis: 'left',
      colour: '--musubi-loss',
      width: 2
    }
  ]
  if (metrics['loss/validation']) {
    const points = metrics['loss/validation']
    curves.push({ label: text('chart.validation'), points, axis: 'left', colour: '--musubi-validation', width: 2 })
  }
  if (rateName) {
    curves.push({
      label: text('chart.rate'),
      points: metrics[rateName],
      axis: 'right',
      colour: '--musubi-rate',
      width: 1.5
    })
  }
  return curves
}

export class Chart {
  constructor() {
    this.canvas = make('canvas', { class: 'musubi-canvas', tabindex: '0', role: 'img', 'data-capture-wheel': 'true' })
    this.legend = make('div', { class: 'musubi-legend' })
    this.tip = make('div', { class: 'musubi-tip', hidden: true })
    this.empty = make('div', { class: 'musubi-empty' }, text('chart.empty'))
    this.element = make(
      'div',
      { class: 'musubi-chart' },
      this.legend,
      make('div', { class: 'musubi-plot' }, this.canvas, this.tip, this.empty)
    )
    this.window = null // steps that are shown; null: all
    this.hidden = new Set()
    this.curves = []
    this.pointer = null
    this.dragFrom = null
    this._listen()
    this._observer = new ResizeObserver(() => this.draw())
    this._observer.observe(this.canvas.parentElement)
  }

  /** Show these series: name → [[step, value], …]. */
  update(metrics) {
    this.curves = curvesOf(metrics)
    this.empty.hidden = this.curves[0].points.length > 0
    this._drawLegend()
    this.draw()
  }

  destroy() {
    this._observer.disconnect()
  }

  // ------------------------------------------------------------------------------------------------ what is shown

  _shown() {
    return this.curves.filter((curve) => !this.hidden.has(curve.label) && curve.points.length)
  }

  _whole() {
    return extent(this.curves.map(({ points }) => points))
  }

  _view() {
    return this.window ?? this._whole()
  }

  _setWindow(view) {
    const [low, high] = this._whole()
    this.window = view && view[1] - view[0] < (high - low) * 0.999 ? view : null
    this.draw()
  }

  _scale() {
    const { clientWidth: width, clientHeight: height } = this.canvas
    const view = this._view()
    const shown = this._shown()
    const of = (axis) => shown.filter((curve) => curve.axis === axis).map(({ points }) => points)
    const plot = { left: EDGE.left, right: width - EDGE.right, top: EDGE.top, bottom: height - EDGE.bottom }
    const ranges = { left: range(of('left'), view, OUTLIERS), right: range(of('right'), view) }
    return {
      width,
      height,
      view,
      plot,
      ranges,
      shown,
      x: (step) => plot.left + ((step - view[0]) / (view[1] - view[0])) * (plot.right - plot.left),
      y: (value, axis) => {
        const [low, high] = ranges[axis]
        return plot.bottom - ((value - low) / (high - low)) * (plot.bottom - plot.top)
      },
      step: (x) => view[0] + ((x - plot.left) / (plot.right - plot.left)) * (view[1] - view[0])
    }
  }

  // ----------------------------------------------------------------------------------------------------- drawing

  draw() {
    const { clientWidth: width, clientHeight: height } = this.canvas
    if (width < 80 || height < 50) return
    const zoom = (this.canvas.getBoundingClientRect().width / width) * window.devicePixelRatio || 1
    const [pixelsWide, pixelsHigh] = [Math.round(width * zoom), Math.round(height * zoom)]
    if (this.canvas.width !== pixelsWide || this.canvas.height !== pixelsHigh) {
      Object.assign(this.canvas, { width: pixelsWide, height: pixelsHigh })
    }
    const pen = this.canvas.getContext('2d')
    const style = getComputedStyle(this.canvas)
    const colour = (name) => style.getPropertyValue(name).trim() || style.color
    pen.setTransform(zoom, 0, 0, zoom, 0, 0)
    pen.clearRect(0, 0, width, height)
    if (!this._shown().length) return
    const scale = this._scale()
    this._drawAxes(pen, scale, colour)
    this._drawCurves(pen, scale, colour)
    this._drawPointer(pen, scale, colour)
  }

  _drawAxes(pen, { plot, ranges, view, shown, x, y }, colour) {
    pen.font = '10px system-ui, sans-serif'
    pen.lineWidth = 1
    pen.textBaseline = 'middle'
    const axes = [
      ['left', plot.left - 6, 'right', 34],
      ['right', plot.right + 6, 'left', 70]
    ]
    for (const [axis, at, align, distance] of axes) {
      if (!shown.some((curve) => curve.axis === axis)) continue
      pen.textAlign = align
      const levels = ticks(...ranges[axis], (plot.bottom - plot.top) / distance)
      const labels = marks(levels)
      for (const [index, mark] of levels.entries()) {
        const level = Math.round(y(mark, axis)) + 0.5
        if (axis === 'left') this._line(pen, [plot.left, level], [plot.right, level], colour('--musubi-grid'))
        pen.fillStyle = colour(axis === 'left' ? '--musubi-muted' : '--musubi-rate')
        pen.fillText(labels[index], at, level)
      }
    }
    pen.textAlign = 'center'
    pen.fillStyle = colour('--musubi-muted')
    for (const mark of ticks(...view, (plot.right - plot.left) / 70)) {
      if (Number.isInteger(mark)) pen.fillText(String(mark), x(mark), plot.bottom + 12)
    }
  }

  _drawCurves(pen, { plot, view, shown, x, y }, colour) {
    pen.save()
    pen.beginPath()
    pen.rect(plot.left, plot.top - 4, plot.right - plot.left, plot.bottom - plot.top + 8)
    pen.clip()
    pen.lineJoin = 'round'
    for (const { points, axis, colour: name, width } of shown) {
      const seen = reduced(within(points, view), 2 * (plot.right - plot.left))
      pen.strokeStyle = pen.fillStyle = colour(name)
      pen.lineWidth = width
      pen.beginPath()
      for (const [step, value] of seen) pen.lineTo(x(step), y(value, axis))
      pen.stroke()
      if (seen.length === 1) pen.fillRect(x(seen[0][0]) - 2, y(seen[0][1], axis) - 2, 4, 4)
    }
    pen.restore()
  }

  _drawPointer(pen, { plot, shown, x, y, step }, colour) {
    this.tip.hidden = true
    if (this.pointer === null) return
    if (this.dragFrom !== null && Math.abs(this.pointer - this.dragFrom) > 3) {
      pen.fillStyle = colour('--musubi-selection')
      pen.fillRect(this.dragFrom, plot.top, this.pointer - this.dragFrom, plot.bottom - plot.top)
      return
    }
    const at = nearest(shown[0].points, step(this.pointer))
    if (!at || this.pointer < plot.left || this.pointer > plot.right) return
    const line = Math.round(x(at[0])) + 0.5
    this._line(pen, [line, plot.top], [line, plot.bottom], colour('--musubi-muted'))
    const rows = shown.map(({ label, points, axis, colour: name }) => {
      const point = nearest(points, at[0])
      pen.fillStyle = colour(name)
      pen.beginPath()
      pen.arc(x(point[0]), y(point[1], axis), 3, 0, 2 * Math.PI)
      pen.fill()
      return make(
        'div',
        {},
        make('span', { class: 'musubi-dot', style: `background: var(${name})` }),
        `${label} ${short(point[1])}`
      )
    })
    this.tip.replaceChildren(make('b', {}, text('chart.step', { step: at[0] })), ...rows)
    this.tip.hidden = false
    const onTheLeft = line > (plot.left + plot.right) / 2
    this.tip.style.left = onTheLeft ? '' : `${line + 10}px`
    this.tip.style.right = onTheLeft ? `${this.canvas.clientWidth - line + 10}px` : ''
  }

  _line(pen, from, to, colour) {
    pen.strokeStyle = colour
    pen.lineWidth = 1
    pen.beginPath()
    pen.moveTo(...from)
    pen.lineTo(...to)
    pen.stroke()
  }

  _drawLegend() {
    const wanted = this.curves
      .filter(({ points }) => points.length)
      .map(({ label }) => label)
      .join()
    if (this.legend.dataset.labels === wanted) return
    this.legend.dataset.labels = wanted
    const entry = ({ label, colour }) => {
      const toggle = make(
        'button',
        { type: 'button', class: 'musubi-chip', 'aria-pressed': String(!this.hidden.has(label)) },
        make('span', { class: 'musubi-dot', style: `background: var(${colour})` }),
        label
      )
      toggle.addEventListener('click', () => {
        if (!this.hidden.delete(label)) this.hidden.add(label)
        toggle.setAttribute('aria-pressed', String(!this.hidden.has(label)))
        this.draw()
      })
      return toggle
    }
    const hint = make('span', { class: 'musubi-hint' }, text('chart.hint'))
    this.legend.replaceChildren(...this.curves.filter(({ points }) => points.length).map(entry), hint)
  }

  // --------------------------------------------------------------------------------------------------- the person

  _listen() {
    const place = (event) => {
      const box = this.canvas.getBoundingClientRect() // ComfyUI's canvas scales its nodes
      return (event.clientX - box.left) * (this.canvas.clientWidth / box.width)
    }
    const on = (name, act) => this.canvas.addEventListener(name, act)
    on('pointermove', (event) => {
      this.pointer = place(event)
      this.draw()
    })
    on('pointerleave', () => {
      this.pointer = null
      this.draw()
    })
    on('pointerdown', (event) => {
      if (event.button !== 0) return
      this.canvas.setPointerCapture(event.pointerId)
      this.dragFrom = place(event)
    })
    on('pointerup', (event) => {
      const [from, to] = [this.dragFrom, place(event)].sort((a, b) => a - b)
      if (this.dragFrom !== null && to - from > 8) {
        const { step } = this._scale()
        this._setWindow([step(from), step(to)])
      }
      this.dragFrom = null
      this.draw()
    })
    on('dblclick', () => this._setWindow(null))
    on('wheel', (event) => {
      if (document.activeElement !== this.canvas || event.ctrlKey) return
      event.preventDefault()
      event.stopPropagation()
      this._zoom(event.deltaY < 0 ? 1 / ZOOM : ZOOM, this._scale().step(place(event)))
    })
    on('keydown', (event) => this._key(event))
  }

  _zoom(factor, around) {
    this._setWindow(zoomed(this._view(), around, factor, this._whole()))
  }

  _key(event) {
    const view = this._view()
    const pace = (view[1] - view[0]) / 10
    const act = {
      ArrowLeft: () => this._setWindow(moved(view, -pace, this._whole())),
      ArrowRight: () => this._setWindow(moved(view, pace, this._whole())),
      '+': () => this._zoom(1 / ZOOM, (view[0] + view[1]) / 2),
      '-': () => this._zoom(ZOOM, (view[0] + view[1]) / 2),
      Escape: () => this._setWindow(null)
    }[event.key]
    if (!act) return
    event.preventDefault()
    event.stopPropagation() // ComfyUI's own keys
    act()
  }
}
