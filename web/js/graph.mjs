/**
 * Which run belongs to which node of the graph that is open, sub-graphs included. Pure but for what it is handed.
 */

const PREFIX = 'MusubiTuner_'
const NEW = '00000000-0000-0000-0000-000000000000' // the id of a graph that was never saved or reloaded
const TASKS = [
  [/LoRATrainer$/, 'train'],
  [/Generator$|^BatchProcessor$/, 'generate'],
  [/^VAELatentCache$/, 'cache-latents'],
  [/^TextEncoderCache$/, 'cache-text'],
  [/^LoRAFormatConverter$/, 'lora convert'],
  [/^LoRAMerger$/, 'lora merge'],
  [/^LoRAPostHocEMA$/, 'lora ema'],
  [/^TrainingMonitor$/, 'newest'],
  [/^ResourceMonitor$/, 'machine']
]

/** Whether a node of this class comes from this pack. */
export function isOurs(className) {
  return Boolean(className?.startsWith(PREFIX))
}

/** What a node of this class runs: a verb, "newest" (it follows any run), "machine", or "" for nothing. */
export function taskOf(className) {
  if (!isOurs(className)) return ''
  const name = className.slice(PREFIX.length)
  return TASKS.find(([pattern]) => pattern.test(name))?.[1] ?? ''
}

/** The outermost graph of the workflow that is open. `app` is ComfyUI's. */
export function rootOf(app) {
  return app.rootGraph ?? app.graph?.rootGraph ?? app.graph
}

/** The node that a run's path names ("7", or "12:3" for node 3 in the sub-graph of node 12), null for none. */
export function nodeAt(root, path) {
  let graph = root
  let node = null
  for (const id of String(path ?? '').split(':')) {
    node = graph?.getNodeById?.(id) ?? graph?.getNodeById?.(Number(id)) ?? null
    if (!node) return null
    graph = node.subgraph
  }
  return node
}

/**
 * The newest run that is this node's, among `runs` (newest first). A run that names another workflow is another node's
 * with the same number; so is one of another task.
 */
export function runOf(node, runs, root, task) {
  const elsewhere = (run) => run.workflow && run.workflow !== NEW && root?.id && run.workflow !== root.id
  return runs.find((run) => run.verb === task && !elsewhere(run) && nodeAt(root, run.node) === node)
}
