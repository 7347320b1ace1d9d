/**
 * What a run will take of the GPU's memory and what was chosen to make it fit: one line, and a table when it is opened.
 */

import { icon, make, setText, show } from './dom.mjs'
import { chosen, memory, worstStages } from './format.mjs'
import { optionOf, planned, text } from './texts.mjs'

/** The view of a run's plan: `{ element, update(run) }`. Nothing is shown of a run that has none. */
export function planView() {
  const fill = make('div', { class: 'musubi-fill' })
  const peak = make('div', { class: 'musubi-peak' })
  const meter = make('div', { class: 'musubi-meter', 'aria-hidden': 'true' }, fill, peak)
  const amount = make('span', { class: 'musubi-plan-amount' })
  const words = make('span', { class: 'musubi-muted musubi-plan-words' })
  const table = make('table', {})
  const summary = make('summary', {}, icon('microchip'), amount, meter, words)
  const element = make('details', { class: 'musubi-plan', hidden: true }, summary, table)
  let drawn = null
  return {
    element,
    update({ plan, resources }) {
      show(element, Boolean(plan))
      if (!plan) return
      const measured = resources.vram_peak_mib?.at(-1)?.[1]
      show(peak, Boolean(measured && plan.limit_mib))
      peak.style.left = `${Math.min(1, measured / plan.limit_mib) * 100}%`
      summary.title = measured ? text('plan.measured', { peak: memory(measured) }) : ''
      if (drawn === plan) return
      drawn = plan
      element.dataset.fits = String(plan.fits)
      const [needed, limit] = [memory(plan.needed_mib), plan.limit_mib && memory(plan.limit_mib)]
      setText(amount, limit ? text('plan.of', { needed, limit }) : needed)
      show(meter, Boolean(limit))
      fill.style.width = `${Math.min(1, plan.needed_mib / plan.limit_mib) * 100}%`
      const added = chosen(plan.options, optionOf, (option) => text('plan.off', { option })).join(' · ')
      const short = text(onlyDiskIsShort(plan) ? 'plan.disk' : 'plan.tight')
      setText(words, plan.fits ? added || text('plan.as_asked') : [short, added].filter(Boolean).join(' · '))
      words.title = words.textContent // there may be more of it than room
      table.replaceChildren(...rows(plan))
    }
  }
}

/** Whether what a job writes to scratch files has no room there, while the GPU has room for the job. */
function onlyDiskIsShort({ needed_mib: needed, limit_mib: limit, scratch_mib: scratch, scratch_free_mib: free }) {
  return Number.isFinite(free) && scratch > free && needed <= (limit ?? Infinity)
}

function rows({ stages, asked_mib: asked, needed_mib: needed, ram_mib: ram, ...disk }) {
  const { scratch_mib: scratch, scratch_folder: folder, scratch_free_mib: free } = disk
  const row = (name, size, most = '') =>
    make('tr', {}, make('th', { scope: 'row' }, name), make('td', {}, memory(size)), make('td', {}, most))
  const parts = worstStages(stages).map(({ name, needed_mib: size, largest }) => row(planned(name), size, planned(largest)))
  const saved = asked > needed ? [row(text('plan.without'), asked)] : []
  const place = Number.isFinite(free) ? text('plan.free', { free: memory(free), folder }) : folder
  const written = scratch ? [row(text('plan.scratch'), scratch, place)] : []
  return [...parts, ...saved, row(text('plan.main_memory'), ram), ...written]
}
