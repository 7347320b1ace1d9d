/**
 * Numbers as people read them. Pure: no page, no language but the units.
 */

/** 75 → "1:15", 3725 → "1:02:05"; "–" for what is not known. Seconds, never negative. */
export function duration(seconds) {
  if (!Number.isFinite(seconds) || seconds < 0) return '–'
  const whole = Math.round(seconds)
  const [hours, minutes, rest] = [Math.floor(whole / 3600), Math.floor((whole % 3600) / 60), whole % 60]
  const two = (number) => String(number).padStart(2, '0')
  return hours ? `${hours}:${two(minutes)}:${two(rest)}` : `${minutes}:${two(rest)}`
}

/** "3.4 steps/s", or "4.2 s/step" where one takes longer than a second. `rate` in units a second. */
export function speed(rate, unit) {
  if (!Number.isFinite(rate) || rate <= 0) return ''
  if (rate >= 1) return `${short(rate)} ${unit}/s`
  return `${short(1 / rate)} s/${unit.replace(/s$/, '')}`
}

/** Three significant digits, without exponent between 0.001 and 100000. */
export function short(value) {
  if (!Number.isFinite(value)) return '–'
  return needsExponent(value) ? exponential(value) : String(Number(value.toPrecision(3)))
}

/** The marks of one axis, all in one notation: 0.001 beside 8e-4 reads as 1e-3. */
export function marks(values) {
  if (!values.some(needsExponent)) return values.map(short)
  return values.map((value) => (value === 0 ? '0' : exponential(value)))
}

function needsExponent(value) {
  const size = Math.abs(value)
  return size !== 0 && (size < 1e-3 || size >= 1e5)
}

function exponential(value) {
  return value.toExponential(2).replace(/\.?0*e\+?/, 'e')
}

/** Mebibytes as "812 MiB" or "11.2 GiB". */
export function memory(mebibytes) {
  if (!Number.isFinite(mebibytes)) return '–'
  return mebibytes < 1024 ? `${Math.round(mebibytes)} MiB` : `${(mebibytes / 1024).toFixed(1)} GiB`
}

/**
 * Options as a reader takes them in: `{ blocks_to_swap: 20, fp8_scaled: true }` → ["blocks to swap 20", "fp8 scaled"].
 * `nameOf(option)` names one, `without(name)` says that it is off.
 */
export function chosen(options, nameOf, without) {
  return Object.entries(options ?? {}).map(([option, value]) => {
    const name = nameOf(option)
    if (value === true) return name
    return value === false ? without(name) : `${name} ${value}`
  })
}

/**
 * The stages of a plan that take most, one a name, each with the name of what takes most in it:
 * `{ name, needed_mib, largest }`.
 */
export function worstStages(stages) {
  const found = new Map()
  for (const { name, needed_mib: needed, device_mib: parts } of stages) {
    if (found.has(name) && found.get(name).needed_mib >= needed) continue
    const [largest] = Object.entries(parts ?? {}).sort(([, one], [, other]) => other - one)[0] ?? ['']
    found.set(name, { name, needed_mib: needed, largest })
  }
  return [...found.values()]
}

/** A moment (epoch seconds) in the reader's own way: today's by the clock, others by the date. */
export function moment(epochSeconds, locale, now = Date.now()) {
  if (!Number.isFinite(epochSeconds)) return ''
  const date = new Date(epochSeconds * 1000)
  const today = date.toDateString() === new Date(now).toDateString()
  const style = today
    ? { hour: '2-digit', minute: '2-digit' }
    : { month: 'short', day: 'numeric', hour: '2-digit', minute: '2-digit' }
  return date.toLocaleString(locale, style)
}

/** The share done, 0..1, or null where the whole is not known. */
export function share(progress) {
  if (!progress || !Number.isFinite(progress.total) || progress.total <= 0) return null
  return Math.min(1, Math.max(0, progress.done / progress.total))
}

/** A message with each absolute path in it cut down to the name of its file: the folders stand elsewhere. */
export function withoutFolders(message) {
  return message.replace(/(?:[A-Za-z]:)?[\\/](?:[^\s:\\/]+[\\/])+([^\s\\/]+)/g, '$1')
}
