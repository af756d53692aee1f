// Two jobs over each other with a slider between them, and what their numbers say of each other.
if ($('cmp-a') && done.length > 1) {
  const [a, b, which, stage, cut] = ['cmp-a', 'cmp-b', 'cmp-i', 'stage', 'cut'].map($);
  for (const select of [a, b]) select.append(...done.map((job) => option(job.id, short(title(job), 90))));
  const use = jobs.get(data.use) ?? done[0];
  const ranked = data.measures.findIndex((m) => m.better > 0 && !m.time);
  const other = done.filter((job) => job !== use).reduce((x, y) => (ranked >= 0 && (y.v[ranked] ?? -Infinity) > (x.v[ranked] ?? -Infinity) ? y : x));
  const known = (id) => (jobs.get(id)?.done ? id : null);
  a.value = known(state.get('a')) ?? use.id;
  b.value = known(state.get('b')) ?? other.id;
  const matching = (one, two) => {
    const places = new Map(images(two).map(([, p, seed], k) => [`${p} ${seed}`, k]));
    const found = images(one).flatMap(([, p, seed], k) => (places.has(`${p} ${seed}`) ? [[k, places.get(`${p} ${seed}`)]] : []));
    return found.length ? [found, true] : [images(one).flatMap((_, k) => (k < images(two).length ? [[k, k]] : [])), false];
  };
  // scores of single images count only where the metric is their mean
  const summands = (m, i, job) => {
    const list = job.sc[m.key]?.filter((x) => x != null) ?? [];
    const mean = list.reduce((x, y) => x + y, 0) / list.length;
    return list.length && Math.abs(mean - job.v[i]) <= Math.max(1e-6, 1e-3 * Math.abs(mean)) ? job.sc[m.key] : null;
  };
  // what the page says of the pair everywhere else: all pairs are one family of tests (Holm)
  const order = new Map(done.map((job, k) => [job.id, k]));
  const apart = (m, one, two) => {
    const [k, l] = [order.get(one.id), order.get(two.id)].sort((x, y) => x - y);
    return k === l ? '-' : m.apart[k * (2 * done.length - k - 1) / 2 + l - k - 1] ?? '-';
  };
  const verdict = (m, i, one, two, pairs, paired) => {
    if (one.v[i] == null || two.v[i] == null) return '';
    if ([one.k[i], two.k[i]].includes('out of line')) return 'no verdict: out of line with the sweep';
    if (one.k[i] !== two.k[i]) return 'not comparable: computed with different things';
    if (!m.better) return '';
    const sc = [summands(m, i, one), summands(m, i, two)];
    const gaps = paired && sc[0] && sc[1] ? pairs.filter(([k, l]) => sc[0][k] != null && sc[1][l] != null).map(([k, l]) => sc[0][k] - sc[1][l]) : [];
    const span = gaps.length > 1 ? `: left − right ${number(gaps.reduce((x, y) => x + y) / gaps.length)}, paired over ${gaps.length}` : '';
    const said = apart(m, one, two);
    if (said === '-') return `no verdict${span}`;
    if (said === '0') return `not told apart${span}`;
    return `${m.better * (one.v[i] - two.v[i]) > 0 ? 'left is better' : 'right is better'}${span}`;
  };
  let matched = [[], true];
  const draw = () => {
    const [one, two] = [jobs.get(a.value), jobs.get(b.value)];
    const pair = matched[0][Number(which.value)];
    for (const [img, job, k] of [['img-a', one, pair?.[0]], ['img-b', two, pair?.[1]]]) {
      $(img).hidden = k === undefined;
      if (k !== undefined) show($(img), job, k);
    }
  };
  const fillPair = () => {
    const [one, two] = [jobs.get(a.value), jobs.get(b.value)];
    keep('a', a.value === use.id ? '' : a.value);
    keep('b', b.value === other.id ? '' : b.value);
    matched = matching(one, two);
    const was = which.selectedOptions[0]?.textContent;
    which.replaceChildren(...matched[0].map(([k], place) => option(place, short(said(one, k), 80))));
    const again = [...which.options].find((o) => o.textContent === was);
    if (again) which.value = again.value;
    const differing = data.axes.map((axis, i) => [axis, i]).filter(([, i]) => one.s[i] !== two.s[i]);
    const label = (job) => differing.map(([axis, i]) => axis.values[job.s[i]]).join(', ') || job.id.slice(0, 8);
    $('tag-a').textContent = label(one);
    $('tag-b').textContent = label(two);
    const line = (name, left, right, more = '') => el('tr', {}, el('th', { scope: 'row' }, name), el('td', {}, bdi(left)), el('td', {}, bdi(right)), el('td', { class: 'muted' }, more));
    $('cmp-table').replaceChildren(
      el('thead', {}, el('tr', {}, ...['', 'left', 'right', 'told apart?'].map((text) => el('th', { scope: 'col' }, text)))),
      el('tbody', {}, ...differing.map(([axis, i]) => line(axis.label, axis.values[one.s[i]], axis.values[two.s[i]])),
        ...data.measures.flatMap((m, i) => (one.v[i] == null && two.v[i] == null ? [] : [line(m.label, number(one.v[i]) + around(one, i), number(two.v[i]) + around(two, i), verdict(m, i, one, two, ...matched))])),
        matched[1] ? null : line('pictures', '', '', 'no prompt and seed in common: pictures are set against each other by their place')));
    draw();
  };
  const place = () => stage.style.setProperty('--cut', `${cut.value}%`);
  cut.addEventListener('input', place);
  const drag = (event) => { const box = stage.getBoundingClientRect(); cut.value = Math.round(100 * (event.clientX - box.x) / box.width); place(); };
  stage.addEventListener('pointerdown', (event) => { stage.setPointerCapture(event.pointerId); drag(event); });
  stage.addEventListener('pointermove', (event) => { if (stage.hasPointerCapture(event.pointerId)) drag(event); });
  for (const select of [a, b]) select.addEventListener('change', fillPair);
  which.addEventListener('change', draw);
  $('cmp-swap').addEventListener('click', () => { [a.value, b.value] = [b.value, a.value]; fillPair(); });
  const take = (select) => () => { if (!shown.job.done) return; select.value = shown.job.id; const k = shown.k; fillPair(); const at = matched[0].findIndex(([l, m]) => (select === a ? l : m) === k); if (at >= 0) which.value = at; draw(); view.close(); $('compare').scrollIntoView(); };
  $('to-a').addEventListener('click', take(a));
  $('to-b').addEventListener('click', take(b));
  fillPair();
} else {
  for (const id of ['to-a', 'to-b']) $(id)?.remove();
}
