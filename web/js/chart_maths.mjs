/**
 * The arithmetic of a curve: smoothing, axes, what lies under the pointer. Pure. A series is a list of [step, value],
 * steps rising.
 */

const ROUNDING = 1e-9 // values that differ by less than this share are the same number, computed twice

/**
 * Exponential moving average, corrected for its start (Kingma & Ba 2015, part 3): the first value is the series' own
 * and not half of it. `weight` 0 (raw) … below 1 (flat).
 */
export function smooth(series, weight) {
  let average = 0
  let total = 1
  return series.map(([step, value]) => {
    average = weight * average + (1 - weight) * value
    total *= weight
    return [step, average / (1 - total)]
  })
}

/** A weight that suits the length: the average reaches back over a twelfth of the series, over 100 points at most. */
export function smoothing(points) {
  return 1 - 1 / Math.min(100, Math.max(2, points / 12))
}

/** First and last step of several series as [first, last]; [0, 1] where there is nothing. */
export function extent(serieses) {
  let [low, high] = [Infinity, -Infinity]
  for (const series of serieses) {
    if (!series.length) continue
    low = Math.min(low, series[0][0])
    high = Math.max(high, series[series.length - 1][0])
  }
  if (low > high) return [0, 1]
  return low === high ? [low - 0.5, high + 0.5] : [low, high]
}

/**
 * Lowest and highest value between two steps, some room added. The highest and lowest `outliers` (a share) are left
 * out, so that one spike does not flatten the curve.
 */
export function range(serieses, [first, last], outliers = 0) {
  const values = serieses
    .flatMap((series) => within(series, [first, last]).map(([, value]) => value))
    .sort((a, b) => a - b)
  if (!values.length) return [0, 1]
  const cut = Math.floor(values.length * outliers)
  const [low, high] = [values[cut], values[values.length - 1 - cut]]
  const size = Math.max(Math.abs(low), Math.abs(high))
  const room = (high - low > size * ROUNDING ? high - low : size || 1) * 0.08
  return [low - room, high + room]
}

/** The part of a series between two steps, with one point more on either side so that lines reach the border. */
export function within(series, [first, last]) {
  const from = Math.max(0, indexAt(series, first) - 1)
  let to = indexAt(series, last)
  while (to < series.length && series[to][0] <= last) to += 1
  return series.slice(from, to + 1)
}

/** Index of the first point at or after a step (binary search). */
export function indexAt(series, step) {
  let [low, high] = [0, series.length]
  while (low < high) {
    const middle = (low + high) >> 1
    if (series[middle][0] < step) low = middle + 1
    else high = middle
  }
  return low
}

/** The point whose step is nearest, null for an empty series. */
export function nearest(series, step) {
  if (!series.length) return null
  const after = Math.min(indexAt(series, step), series.length - 1)
  const before = Math.max(after - 1, 0)
  return step - series[before][0] < series[after][0] - step ? series[before] : series[after]
}

/** Round numbers between low and high, about `count` of them: steps of 1, 2 or 5 times a power of ten. */
export function ticks(low, high, count) {
  const rough = (high - low) / Math.max(count, 1)
  if (!(rough > Math.max(Math.abs(low), Math.abs(high)) * ROUNDING)) return [] // counting on would never arrive
  const power = 10 ** Math.floor(Math.log10(rough))
  const step = [1, 2, 5, 10].find((factor) => factor * power >= rough) * power
  const marks = []
  for (let index = Math.ceil(low / step); index * step <= high + step * 1e-9; index += 1) {
    marks.push(Number((index * step).toPrecision(12)))
  }
  return marks
}

/** A window after zooming by `factor` (below 1: closer) around a step, kept inside the whole. */
export function zoomed([first, last], around, factor, [low, high]) {
  const length = Math.min((last - first) * factor, high - low)
  if (length < Math.min(4, high - low)) return [first, last]
  const start = around - ((around - first) / (last - first)) * length
  return moved([start, start + length], 0, [low, high])
}

/** A window moved by some steps, kept inside the whole. */
export function moved([first, last], steps, [low, high]) {
  const length = last - first
  const start = Math.min(Math.max(first + steps, low), high - length)
  return [start, start + length]
}

/** No more than `count` points for drawing: of each group the lowest and the highest, so spikes stay visible. */
export function reduced(series, count) {
  if (series.length <= count) return series
  const group = Math.ceil((2 * series.length) / count)
  const kept = []
  for (let start = 0; start < series.length; start += group) {
    const part = series.slice(start, start + group)
    const low = part.reduce((a, b) => (b[1] < a[1] ? b : a))
    const high = part.reduce((a, b) => (b[1] > a[1] ? b : a))
    kept.push(...(low === high ? [low] : low[0] < high[0] ? [low, high] : [high, low]))
  }
  return kept
}
