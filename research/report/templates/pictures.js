// The contact sheet with any axis along any side, prompts and seeds among them (the XYZ plot).
const sheet = $('sheet');
if (sheet) {
  const [REST, NONE, PROMPT, SEED] = ['rest', 'none', 'prompt', 'seed'];
  const MOST = 60;
  const first = sheet.innerHTML.length ? sheet.firstElementChild : null;
  const last = String(data.axes.length - 1);
  const entries = done.flatMap((job) => images(job).map(([, p, seed], k) => ({ job, k, p, seed })));
  const several = (get) => new Set(entries.map(get)).size > 1;
  const names = [...data.axes.map((axis, a) => [String(a), axis.label])];
  if (several((e) => e.p)) names.push([PROMPT, 'prompt']);
  if (several((e) => e.seed)) names.push([SEED, 'seed']);
  const offer = (id, extra, wanted) => {
    const select = $(id);
    select.append(...[...extra, ...names].map(([value, text]) => option(value, short(text, 30))));
    select.value = state.get(id) ?? wanted;
    if (select.selectedIndex < 0) select.value = wanted;
    select.addEventListener('change', () => { keep(id, select.value === wanted ? '' : select.value); build(); });
    return select;
  };
  const x = offer('ax-x', [[NONE, 'nothing']], data.axes.length ? last : NONE);
  const y = offer('ax-y', [[REST, 'all other settings'], [NONE, 'nothing']], REST);
  const z = offer('ax-z', [[NONE, 'nothing']], NONE);
  const only = $('ax-p');
  only.append(option('', 'a few of each'), ...data.prompts.map((prompt, p) => option(p, short(prompt || 'no prompt', 50))));
  only.value = state.get('ax-p') ?? '';
  only.addEventListener('change', () => { keep('ax-p', only.value); build(); });
  const size = $('tile-size');
  size.value = state.get('tile') ?? parseInt(getComputedStyle(sheet).getPropertyValue('--tile'), 10);
  const resize = () => sheet.style.setProperty('--tile', `${size.value}px`);
  if (state.has('tile')) resize();
  size.addEventListener('input', () => { resize(); keep('tile', size.value); });

  const get = (axis) => ({ [PROMPT]: (e) => e.p, [SEED]: (e) => e.seed })[axis] ?? ((e) => e.job.s[axis]);
  const text = (axis, value) => ({ [PROMPT]: () => data.prompts[value] || 'no prompt', [SEED]: () => `seed ${value}` })[axis]?.() ?? data.axes[axis].values[value];
  const name = (axis) => data.axes[axis]?.label ?? axis;
  const values = (axis, among) => [...new Set(among.map(get(axis)))].sort((a, b) => a - b);
  const tile = (e) => {
    const known = thumbs.get(`${e.job.id} ${e.k}`);
    if (known) return known.cloneNode(true);
    const a = el('a', { class: 'tile', href: fileOf(e.job, e.k), 'data-job': e.job.id, 'data-k': e.k, title: said(e.job, e.k) });
    const img = el('img', { alt: said(e.job, e.k), loading: 'lazy', src: fileOf(e.job, e.k) });
    img.onload = () => img.classList.toggle('px', img.naturalWidth <= 40);
    a.append(img);
    return a;
  };
  const best = data.measures.map((m, i) => {
    const found = done.filter((job) => job.v[i] != null && (job.k[i] || 'a') === 'a');
    return m.better && found.length > 1 ? found.reduce((a, b) => (m.better * (b.v[i] - a.v[i]) > 0 ? b : a)) : null;
  });
  const cell = (found, failed) => {
    if (!found.length) {
      return failed ? el('td', { class: 'none bad', 'data-job': failed.id }, `✕ failed: ${short(failed.error, 120)}`) : el('td', { class: 'none' }, '–');
    }
    const own = new Set(found.map((e) => e.job));
    const prompts = [x.value, y.value, z.value].some((axis) => axis === PROMPT || axis === SEED) || only.value !== '';
    const known = found.filter((e) => thumbs.has(`${e.job.id} ${e.k}`));
    const list = (prompts || !known.length ? found : known).slice(0, 8);
    const tiles = el('div', { class: 'tiles' }, ...list.map(tile));
    tiles.style.setProperty('--n', list.length < 4 ? list.length : Math.ceil(list.length / 2));
    const td = el('td', own.size === 1 ? { 'data-job': found[0].job.id } : {}, tiles);
    if (own.size === 1 && !(prompts && only.value === '')) {
      const job = found[0].job;
      const notes = data.measures.flatMap((m, i) => (m.better && job.v[i] != null && !m.time ? [el('span', best[i] === job ? { class: 'top' } : {}, `${m.label} ${number(job.v[i])}`)] : [])).slice(0, 3);
      td.append(el('div', { class: 'notes' }, ...notes));
    }
    return td;
  };
  const fixed = new Map();
  const build = () => {
    const used = [x.value, y.value, z.value];
    $('ax-fixed').replaceChildren();
    if (used.every((axis, i) => axis === [data.axes.length ? last : NONE, REST, NONE][i]) && only.value === '') {
      sheet.replaceChildren(first);
      document.dispatchEvent(new Event('sheet'));
      return;
    }
    const left = data.axes.map((_, a) => String(a)).filter((a) => !used.includes(a));
    let among = entries.filter((e) => only.value === '' || e.p === Number(only.value));
    let failed = data.jobs.filter((job) => !job.done);
    const rest = y.value === REST ? left : [];
    if (y.value !== REST) {
      for (const a of left) {
        const wanted = fixed.get(a) ?? (jobs.get(data.use) ?? done[0]).s[a];
        const select = el('select', { 'aria-label': data.axes[a].label }, ...data.axes[a].values.map((value, v) => option(v, short(value, 40))));
        select.value = wanted;
        select.addEventListener('change', () => { fixed.set(a, Number(select.value)); build(); $('ax-fixed').querySelector(`[aria-label="${CSS.escape(data.axes[a].label)}"]`)?.focus(); });
        $('ax-fixed').append(el('label', {}, `${data.axes[a].label} `, select));
        among = among.filter((e) => e.job.s[a] === wanted);
        failed = failed.filter((job) => job.s[a] === wanted);
      }
    }
    const rowKey = (e) => (y.value === REST ? rest.map((a) => e.job.s[a]).join(' ') : y.value === NONE ? '' : String(get(y.value)(e)));
    const columns = x.value === NONE ? [null] : values(x.value, [...among, ...(data.axes[x.value] ? failed.map((job) => ({ job })) : [])]).slice(0, MOST);
    const grids = z.value === NONE ? [null] : values(z.value, among).slice(0, MOST);
    const tables = grids.map((zv) => {
      const inGrid = zv === null ? among : among.filter((e) => get(z.value)(e) === zv);
      const keys = y.value === REST ? [...new Set(data.jobs.filter((job) => inGrid.some((e) => e.job === job) || failed.includes(job)).map((job) => rowKey({ job })))]
        : y.value === NONE ? [''] : values(y.value, inGrid).slice(0, MOST).map(String);
      const cells = new Map();
      for (const e of inGrid) {
        const at = `${rowKey(e)}|${x.value === NONE ? '' : get(x.value)(e)}`;
        if (cells.has(at)) cells.get(at).push(e); else cells.set(at, [e]);
      }
      const labels = y.value === REST ? rest.map((a) => data.axes[a].label) : y.value === NONE ? [] : [name(y.value)];
      const head = el('tr', {}, ...labels.map((label) => el('th', { scope: 'col' }, label)),
        ...columns.map((xv) => el('th', { scope: 'col' }, xv === null ? '' : el('span', { class: 'muted' }, `${name(x.value)} `), xv === null ? '' : bdi(short(text(x.value, xv), 60)))));
      const body = keys.map((key) => {
        const parts = y.value === REST ? (key === '' ? [] : key.split(' ')).map((v, i) => data.axes[rest[i]].values[v]) : y.value === NONE ? [] : [text(y.value, Number(key))];
        return el('tr', {}, ...parts.map((part) => el('th', { scope: 'row' }, bdi(short(part, 60)))), ...columns.map((xv) => {
          const bad = failed.find((job) => (xv === null || !data.axes[x.value] || job.s[x.value] === xv) && (y.value === REST ? rowKey({ job }) === key : !data.axes[y.value] || String(job.s[y.value]) === key)
            && (zv === null || !data.axes[z.value] || job.s[z.value] === zv));
          return cell(cells.get(`${key}|${xv === null ? '' : xv}`) ?? [], bad);
        }));
      });
      return el('table', { class: 'grid' }, zv === null ? null : el('caption', {}, `${name(z.value)} `, bdi(text(z.value, zv))), el('thead', {}, head), el('tbody', {}, ...body));
    });
    sheet.replaceChildren(...tables);
    document.dispatchEvent(new Event('sheet'));
  };
  // arrow keys go from picture to picture, as they lie
  sheet.addEventListener('keydown', (event) => {
    const at = event.target.closest('a.tile');
    const way = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] }[event.key];
    if (!at || !way) return;
    event.preventDefault();
    const here = at.getBoundingClientRect();
    let near = null, least = Infinity;
    for (const other of sheet.querySelectorAll('a.tile')) {
      const box = other.getBoundingClientRect();
      const along = way[0] ? (box.x - here.x) * way[0] : (box.y - here.y) * way[1];
      const aside = Math.abs(way[0] ? box.y - here.y : box.x - here.x);
      if (along > 1 && along + 4 * aside < least) { least = along + 4 * aside; near = other; }
    }
    near?.focus();
  });
  if (['ax-x', 'ax-y', 'ax-z', 'ax-p'].some((id) => state.has(id))) build();
}
