// Choosing, pointing, searching: what happens when.
const tip = byId('tip');
const sets = data.sets.map((_, index) => [...document.querySelectorAll(`[data-set="${index}"]`)]);
const edges = data.blocks.map((_, index) => document.querySelector(`[data-block="${index}"]`));

function mark(members, dim) {
  sets.forEach((elements, index) => elements.forEach((e) => e.classList.toggle('member', members.includes(index))));
  world.classList.toggle('fade', Boolean(dim && members.length));
}

function light(name) {
  const found = data.classes.find((one) => one.name === name);
  mark(found ? found.members : [], true);
}

function pinClass(name) {
  state.pinned = state.pinned === name ? null : name;
  useTab('symmetries');
  for (const row of panes.symmetries.querySelectorAll('[data-class]')) {
    row.classList.toggle('pinned', row.dataset.class === state.pinned);
  }
  light(state.pinned);
}

function boxOf(index) {
  const byView = byId('layers').style.display === 'none' ? sets[index][1] : sets[index][0];
  return byView ? byView.getBBox() : null;
}

// Choose a node set or a block: it is drawn bold and the panel tells everything about it.
function choose(kind, index, move) {
  state.chosen = kind ? [kind, index] : null;
  sets.forEach((elements, i) => elements.forEach((e) => e.classList.toggle('chosen', kind === 'set' && i === index)));
  edges.forEach((element, i) => element.classList.toggle('chosen', kind === 'block' && i === index));
  const ends = kind === 'block' ? [data.blocks[index].source, data.blocks[index].target] : [];
  sets.forEach((elements, i) => elements.forEach((e) => e.classList.toggle('end', ends.includes(i))));
  panes.details.replaceChildren(...(kind === 'set' ? setDetails(index) : kind === 'block' ? blockDetails(index) : overview())
    .filter(Boolean));
  useTab('details');
  if (kind && innerWidth > 860) byId('panel').scrollTop = 0;
  if (kind === 'set' && move && boxOf(index)) reveal(boxOf(index));
}

function showTip(content, x, y) {
  tip.replaceChildren(...content.filter(Boolean));
  tip.hidden = false;
  const width = tip.offsetWidth, height = tip.offsetHeight;
  let left = x + 16, top = y + 18;
  if (left + width > innerWidth - 8) left = Math.max(8, x - width - 16);
  if (top + height > innerHeight - 8) top = Math.max(8, y - height - 14);
  tip.style.left = `${left}px`;
  tip.style.top = `${top}px`;
}

const hideTip = () => { tip.hidden = true; };

function contentAt(element) {
  const dot = element.closest('[data-note]');
  if (dot) return [make('b', {}, dot.dataset.note)];
  const set = element.closest('[data-set]'), edge = element.closest('[data-block]');
  return set ? setTip(Number(set.dataset.set)) : edge ? blockTip(Number(edge.dataset.block)) : null;
}

function startDrawing() {
  for (const title of document.querySelectorAll('#neurons title')) { // the page's own tooltip instead of the browser's
    title.parentNode.setAttribute('data-note', title.textContent);
    title.remove();
  }
  for (const edge of edges) { // thin lines are hard to hit
    const wide = edge.firstElementChild.cloneNode();
    wide.setAttribute('class', 'hit');
    for (const name of ['style', 'stroke-width', 'stroke-dasharray']) wide.removeAttribute(name);
    edge.append(wide);
  }
  let under = null;
  canvas.addEventListener('pointermove', (event) => {
    if (event.pointerType === 'touch' || canvas.classList.contains('drag')) return hideTip();
    const target = event.target.closest('[data-note],[data-set],[data-block]');
    if (!target) { under = null; return hideTip(); }
    if (target !== under || tip.hidden) showTip(contentAt(target), event.clientX, event.clientY);
    under = target;
  });
  canvas.addEventListener('pointerleave', hideTip);
  canvas.addEventListener('click', (event) => {
    const set = event.target.closest('[data-set]'), edge = event.target.closest('[data-block]');
    if (set) choose('set', Number(set.dataset.set));
    else if (edge) choose('block', Number(edge.dataset.block));
    else choose(null);
  });
  canvas.addEventListener('focusin', (event) => {
    const set = event.target.closest('[data-set]');
    if (!set || !set.matches(':focus-visible')) return;
    reveal(set.getBBox());
    const box = set.getBoundingClientRect();
    showTip(setTip(Number(set.dataset.set)), box.right - 10, box.top + box.height / 2);
  });
  canvas.addEventListener('focusout', hideTip);
  canvas.addEventListener('scroll', () => canvas.scrollTo(0, 0)); // browsers scroll focused parts into sight themselves
  canvas.addEventListener('keydown', (event) => {
    const set = event.target.closest('[data-set]');
    if (!set || (event.key !== 'Enter' && event.key !== ' ')) return;
    event.preventDefault();
    choose('set', Number(set.dataset.set));
  });
}

function startSearch() {
  const input = byId('find'), list = byId('found');
  let matches = [], current = -1;
  const close = () => { list.hidden = true; input.setAttribute('aria-expanded', 'false'); };
  const select = (index) => {
    current = index;
    [...list.children].forEach((item, i) => item.setAttribute('aria-selected', String(i === index)));
    if (list.children[index]) {
      input.setAttribute('aria-activedescendant', list.children[index].id);
      list.children[index].scrollIntoView({block: 'nearest'});
    } else input.removeAttribute('aria-activedescendant');
  };
  const take = (index) => { close(); choose('set', index, true); };
  input.addEventListener('input', () => {
    const words = input.value.toLowerCase().split(/\s+/).filter(Boolean);
    const text = (set) => [set.name, ...set.features.map((f) => f.parameter),
      ...set.incoming.map((k) => data.blocks[k].parameter || '')].join(' ').toLowerCase();
    matches = words.length ? data.sets.map((_, i) => i).filter((i) => words.every((word) => text(data.sets[i]).includes(word))) : [];
    sets.forEach((elements, i) => elements.forEach((e) => e.classList.toggle('found', matches.includes(i))));
    list.replaceChildren(...(matches.length ? matches.slice(0, 50).map((i, place) => make('li', {role: 'option', id: `found-${place}`,
      'aria-selected': 'false', onpointerdown: (event) => { event.preventDefault(); take(i); }},
    make('span', {}, data.sets[i].name), make('span', {}, count(data.sets[i].size))))
      : words.length ? [make('li', {role: 'option', 'aria-disabled': 'true'}, 'No layer of this name')] : []));
    list.hidden = !words.length;
    input.setAttribute('aria-expanded', String(!list.hidden));
    select(matches.length ? 0 : -1);
  });
  input.addEventListener('keydown', (event) => {
    if (event.key === 'ArrowDown' || event.key === 'ArrowUp') {
      event.preventDefault();
      const step = event.key === 'ArrowDown' ? 1 : -1, many = Math.min(50, matches.length);
      if (many) select((current + step + many) % many);
    } else if (event.key === 'Enter' && matches[current] !== undefined) take(matches[current]);
    else if (event.key === 'Escape') { input.value = ''; input.dispatchEvent(new Event('input')); input.blur(); event.stopPropagation(); }
  });
  input.addEventListener('blur', close);
  document.addEventListener('keydown', (event) => {
    const writes = event.target.matches && event.target.matches('input');
    if (event.key === '/' && !writes && !event.ctrlKey && !event.metaKey) { event.preventDefault(); input.focus(); }
    if (event.key === 'Escape') { hideTip(); if (state.pinned) pinClass(state.pinned); if (!writes) choose(null); }
  });
}

function startPanel() {
  const names = Object.keys(panes);
  panes.symmetries.replaceChildren(...symmetryPane().filter(Boolean));
  panes.layers.replaceChildren(...layerPane());
  names.forEach((name, i) => {
    const tab = byId(`tab-${name}`);
    tab.addEventListener('click', () => useTab(name));
    tab.addEventListener('keydown', (event) => {
      const step = {ArrowRight: 1, ArrowLeft: -1}[event.key];
      if (!step) return;
      const next = names[(i + step + names.length) % names.length];
      useTab(next);
      byId(`tab-${next}`).focus();
    });
  });
  byId('skip').addEventListener('click', () => byId('panel').focus());
}

startDrawing();
startPanel();
startSearch();
startView();
choose(null);
matchMedia('(prefers-color-scheme: dark)').addEventListener('change', () => {
  if (state.chosen) choose(...state.chosen);
});
