/**
 * What a line of the log says at a glance, and where the search finds something in it. Pure.
 */

/** "error", "warning" or "" for a line of the log. */
export function levelOf(line) {
  if (/\b(error|traceback|exception)\b/i.test(line)) return 'error'
  return /\bwarning\b/i.test(line) ? 'warning' : ''
}

/** The text cut at each match, as [[part, is it a match], …]; capital letters do not count. */
export function highlighted(line, wanted) {
  if (!wanted) return [[line, false]]
  const parts = []
  const [low, sought] = [line.toLowerCase(), wanted.toLowerCase()]
  let at = 0
  for (let found = low.indexOf(sought); found >= 0; found = low.indexOf(sought, at)) {
    if (found > at) parts.push([line.slice(at, found), false])
    parts.push([line.slice(found, found + sought.length), true])
    at = found + sought.length
  }
  if (at < line.length) parts.push([line.slice(at), false])
  return parts
}
