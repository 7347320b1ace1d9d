/**
 * The page's texts in the reader's language. They lie in `locales/<language>/main.json` under "musubi", where ComfyUI
 * finds and serves them; a text that a language lacks is shown in English.
 */

import { translations } from './api.mjs'

let language = 'en'
let chosen = {}
let english = {}
let forms = [] // [key, pattern] of the sentences under "said"

/** Load the texts once, before anything is drawn. `locale` is ComfyUI's own setting, such as "ja". */
export async function loadTexts(locale) {
  language = locale || 'en'
  const all = await translations()
  english = all.en?.musubi ?? {}
  chosen = all[language]?.musubi ?? all[language.split('-')[0]]?.musubi ?? english
  forms = Object.entries(english.said ?? {}).map(([key, form]) => [key, patternOf(form)])
}

/** The language in use, as Intl takes it. */
export function locale() {
  return language
}

/** `text('run.stop')`; `{name}` in it is replaced by `values.name`. */
export function text(key, values = {}) {
  const found = look(chosen, key) ?? look(english, key) ?? key
  return found.replace(/\{(\w+)\}/g, (whole, name) => (name in values ? String(values[name]) : whole))
}

/** Like `text`, but `otherwise` where there is no such text. */
export function textOr(key, otherwise) {
  return look(chosen, key) ?? look(english, key) ?? otherwise
}

/**
 * What the engine says it is doing: in the reader's language where it is one of its fixed stages, else as it is. The
 * demo says before it for whom ("Wan 2.1: Training").
 */
export function doing(words) {
  const [before, stage] = /^(.*: )?(.*)$/s.exec(words ?? '').slice(1)
  return (before ?? '') + textOr(`doing.${stage.toLowerCase().replaceAll(/[^a-z0-9]+/g, '_')}`, stage)
}

/** What a run that goes on is doing; before its first stage, what the server said, such as what it waits for. */
export function doingNow({ progress, stage, message }) {
  return doing(progress?.label || stage) || said(message) // a stage clears what was counted: a count is always newer
}

/**
 * How a run ended or what it waits for, as the engine or the server says it: in the reader's language where the sentence has one of the
 * forms under "said", with the numbers and names that stand in it; else as it is.
 */
export function said(words) {
  for (const [key, pattern] of forms) {
    const found = pattern.exec(words ?? '')
    if (found) return text(`said.${key}`, { ...found.groups, unit: unitOf(found.groups?.unit) })
  }
  return words ?? ''
}

/** Of sentences of a form, with groups for what stands where it has `{name}`. */
function patternOf(form) {
  const parts = form.split(/\{(\w+)\}/) // text and names in turn
  const pattern = parts.map((part, place) => (place % 2 ? `(?<${part}>.*?)` : part.replace(/[^\w\s]/g, '\\$&')))
  return new RegExp(`^${pattern.join('')}$`, 's')
}

/** "steps", "clips", …: what the engine counts, in the reader's language. */
export function unitOf(name) {
  return name ? textOr(`unit.${name}`, name) : ''
}

function look(table, key) {
  const found = key.split('.').reduce((part, name) => part?.[name], table)
  return typeof found === 'string' ? found : undefined
}
