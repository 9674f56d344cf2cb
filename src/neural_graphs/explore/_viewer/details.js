// What the panel and the tooltip say about a layer, a block, the whole network.
const panes = {details: byId('pane-details'), symmetries: byId('pane-symmetries'), layers: byId('pane-layers')};

function useTab(name) {
  for (const [id, pane] of Object.entries(panes)) {
    pane.hidden = id !== name;
    const tab = byId(`tab-${id}`);
    tab.setAttribute('aria-selected', String(id === name));
    tab.tabIndex = id === name ? 0 : -1;
  }
}

const link = (text, action) => make('button', {type: 'button', class: 'link', onclick: action}, text);
const facts = (pairs) => make('dl', {}, pairs.filter(([, value]) => value).map(([name, value]) =>
  [make('dt', {}, name), make('dd', {}, value)]));

function classText(set) {
  if (!set.classes.length) return 'fixed';
  return [make('i', {class: 'swatch', style: `background:${hue(set.classes[0])}`}), set.class || set.classes.join(', ')];
}

function featureTable(set) {
  return table(['node feature', ...NUMBERS], set.features.map((found) =>
    [[found.kind, odd(found) ? make('span', {class: 'warn'}, ` (${odd(found)})`) : null], ...numbers(found)]), [1, 2, 3, 4]);
}

function blockTable(blocks) {
  return table(['from', ...NUMBERS], blocks.map((block) =>
    [[`${setName(block.source)} `, make('span', {class: 'sub'}, block.kind)], ...numbers(block)]), [1, 2, 3, 4]);
}

function setTip(index) {
  const set = data.sets[index], blocks = incoming(index).filter((block) => block.parameter);
  const most = 6;
  return [make('b', {}, set.name),
    make('div', {class: 'sub'}, [`${count(set.size)} neurons`, set.role, set.activation].filter(Boolean).join(' · ')),
    make('div', {}, 'symmetry: ', classText(set), ' · ', `${count(set.count)} parameters`),
    set.features.length ? featureTable(set) : null,
    blocks.length ? blockTable(blocks.slice(0, most)) : null,
    blocks.length > most ? make('div', {class: 'sub'}, `and ${blocks.length - most} more blocks`) : null];
}

function blockTip(index) {
  const block = data.blocks[index];
  const head = [make('b', {}, block.parameter || block.kind),
    make('div', {class: 'sub'}, `${setName(block.source)} → ${setName(block.target)}`)];
  if (!block.parameter) return [...head, make('div', {}, `${kindWord(block)}, no parameters`)];
  return [...head, make('div', {}, `${kindWord(block)} · [${block.shape.join(', ')}]`),
    table(NUMBERS, [numbers(block)], [0, 1, 2, 3]),
    odd(block) ? make('div', {class: 'warn'}, odd(block)) : null,
    block.map ? make('div', {class: 'sub'}, 'click: the weights') : null];
}

function blockButton(index, side) {
  const block = data.blocks[index];
  const statistics = block.parameter ? `mean ${number(block.mean)}, std ${number(block.std)}` : 'no parameters';
  return make('button', {type: 'button', 'data-block': index, onclick: () => choose('block', index)}, thumbnail(block),
    make('span', {}, make('b', {}, setName(block[side])),
      make('small', {}, `${kindWord(block)}${block.parameter ? ' · ' + block.parameter : ''}`),
      make('small', {}, statistics, odd(block) ? make('span', {class: 'warn'}, ` · ${odd(block)}`) : null)));
}

function setDetails(index) {
  const set = data.sets[index];
  const rows = (title, list, side) => (list.length
    ? [make('h3', {}, title), make('div', {class: 'rows'}, list.map((k) => blockButton(k, side)))] : []);
  const found = set.classes[0];
  return [make('h2', {}, set.name), make('div', {class: 'sub'}, `node set ${index + 1} of ${data.sets.length}`),
    facts([['neurons', count(set.size)], ['role', set.role], ['activation', set.activation],
      ['symmetry', found ? [classText(set), ' ', link('show members', () => pinClass(found))] : 'fixed'],
      ['parameters', count(set.count)]]),
    set.features.length ? [make('h3', {}, 'Node features'), featureTable(set)] : [],
    rows('Reads from', set.incoming, 'source'), rows('Is read by', set.outgoing, 'target')].flat();
}

function blockDetails(index) {
  const block = data.blocks[index], go = (set) => link(setName(set), () => choose('set', set));
  const owner = block.copy_of === undefined ? null : data.blocks[block.copy_of];
  return [make('h2', {}, block.parameter || `${block.kind} block`),
    make('div', {class: 'sub'}, go(block.source), ' → ', go(block.target)),
    facts([['kind', kindWord(block)], ['shape', block.parameter && `[${block.shape.join(', ')}]`], ['axes', block.axes],
      ['edges', count(block.edges)], ['parameters', count(block.count)],
      ['shared', owner && link(`the tensor of ${setName(owner.source)} → ${setName(owner.target)}`,
        () => choose('block', block.copy_of))],
      ['not finite', odd(block) && make('span', {class: 'warn'}, odd(block))]]),
    block.parameter ? table(NUMBERS, [numbers(block)], [0, 1, 2, 3]) : null,
    block.map ? weightMap(block, Math.max(200, byId('panel').clientWidth - 44)) : null];
}

function overview() {
  const keys = (...names) => names.map((name) => [make('kbd', {}, name), ' ']);
  return [make('h2', {}, 'The network'),
    facts([['node sets', count(data.sets.length)], ['blocks', count(data.blocks.length)], ['neurons', count(data.nodes)],
      ['edges', count(data.edges)], ['parameters', count(data.parameters)], ['symmetries', data.group],
      ['not in the graph', counted(data.rest)]]),
    make('h3', {}, 'How to look'),
    make('p', {}, 'Point at a layer or an edge for its numbers; click an edge, or choose a block of a layer, for its weights.'),
    make('p', {}, keys('+', '−', '0'), 'zoom, ', keys('←', '↑', '→', '↓'), 'move, ', keys('Tab'), 'from layer to layer, ',
      keys('Enter'), 'choose, ', keys('/'), 'search, ', keys('Esc'), 'back here.')];
}

// Long lists of names (a counter in every batch norm) as how often each last part of a name occurs.
function counted(names) {
  if (names.length <= 4) return names.join(', ');
  const kinds = new Map();
  for (const name of names) {
    const kind = name.slice(name.lastIndexOf('.') + 1);
    kinds.set(kind, (kinds.get(kind) || 0) + 1);
  }
  return [...kinds].map(([kind, n]) => `${n} × ${kind}`).join(', ');
}

function share(value) {
  const percent = Math.min(100 * value, value < 1 ? 99.9 : 100);
  return `${percent > 99 && value < 1 ? percent.toFixed(1) : percent.toFixed(0)} %`;
}

function symmetryPane() {
  const size = data.log10_order < 15 ? count(Math.round(10 ** data.log10_order)) : null;
  const order = size || ['10', make('sup', {}, count(Math.round(data.log10_order)))];
  const row = (found) => ({attributes: {tabindex: 0, 'data-class': found.name, onmouseenter: () => light(found.name),
    onmouseleave: () => light(state.pinned), onfocus: () => light(found.name), onblur: () => light(state.pinned),
    onclick: () => pinClass(found.name), onkeydown: (event) => {
      if (event.key === 'Enter' || event.key === ' ') { event.preventDefault(); pinClass(found.name); }
    }},
  cells: [[make('i', {class: 'swatch', style: `background:${found.color}`}), found.name], count(found.size),
    found.over.join(', ') || '–', found.activation || '–', count(found.members.length)]});
  return [make('h2', {}, 'Symmetry group'), make('p', {class: 'sub'}, data.group),
    make('p', {}, 'Reordering the neurons of a class, everywhere at once, leaves the function of the network unchanged. '
      + 'There are ', order, ` such orders; they can move ${share(data.share_moved)} of the parameters.`),
    data.classes.length ? table(['class', 'size', 'for each of', 'activation', 'sets'], data.classes.map(row), [1, 4]) : null,
    data.rescalings.length ? [make('h3', {}, 'Beyond permutation'),
      table(['kind', 'class', 'tensors'], data.rescalings.map((found) => [found.kind, found.class, count(found.tensors)]), [2])]
      : []].flat();
}

function layerPane() {
  const rows = data.sets.map((set, index) => ({attributes: {tabindex: 0, 'data-set': index,
    onclick: () => choose('set', index, true), onkeydown: (event) => { if (event.key === 'Enter') choose('set', index, true); },
    onmouseenter: () => mark([index]), onmouseleave: () => mark([])},
  cells: [set.name, count(set.size), set.activation || '–', short(set.count)]}));
  return [make('h2', {}, 'Layers'), table(['node set', 'neurons', 'activation', 'parameters'], rows, [1, 3])];
}
