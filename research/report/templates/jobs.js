// The table of jobs: sorting, and the filter, which the figures and the contact sheet follow.
const table = $('jobs-table');
if (table) {
  const heads = [...table.tHead.rows[0].cells];
  const rows = [...table.tBodies[0].rows];
  const texts = new Map(rows.map((row) => [row, row.textContent.toLowerCase()]));
  const sort = (column, sign) => {
    heads.forEach((other) => other.removeAttribute('aria-sort'));
    heads[column].setAttribute('aria-sort', sign === 1 ? 'ascending' : 'descending');
    const value = (row) => row.cells[column].dataset.v ?? row.cells[column].textContent;
    const values = new Map(rows.map((row) => [row, value(row)]));
    const order = (a, b) => {
      const [x, y] = [values.get(a), values.get(b)];
      if (x === '' || y === '') return (x === '') - (y === '');
      const [m, n] = [Number(x), Number(y)];
      return sign * (Number.isNaN(m) || Number.isNaN(n) ? x.localeCompare(y) : m - n);
    };
    table.tBodies[0].append(...rows.sort(order));
    keep('sort', `${column}${sign === 1 ? 'a' : 'd'}`);
  };
  heads.forEach((head, column) => head.querySelector('button').addEventListener('click', () => {
    sort(column, head.getAttribute('aria-sort') === 'ascending' ? -1 : 1);
  }));
  for (const row of rows) if (row.dataset.job === data.use) row.classList.add('use');

  const plain = (text) => text.toLowerCase().replace(/[^\p{L}\p{N}]+/gu, '');
  const named = (word) => {
    const wanted = plain(word);
    const found = (names) => { const exact = names.findIndex((n) => n.includes(wanted)); return exact >= 0 ? exact : names.findIndex((n) => n.some((one) => one.startsWith(wanted))); };
    const m = found(data.measures.map((x) => [plain(x.key), plain(x.label)]));
    if (m >= 0) return (job) => job.v[m];
    const a = found(data.axes.map((x) => [plain(x.key), plain(x.label)]));
    if (a < 0) return null;
    return (job) => data.axes[a].values[job.s[a]];
  };
  const compare = { '<': (x, y) => x < y, '<=': (x, y) => x <= y, '>': (x, y) => x > y, '>=': (x, y) => x >= y };
  const rule = (word) => {
    const found = /^([^<>=:]+)(<=|>=|<|>|=|:)(.+)$/.exec(word);
    const value = found && named(found[1]);
    if (!value) return (job, text) => text.includes(word);
    const [, , sign, wanted] = found;
    const limit = Number(wanted);
    if (compare[sign]) return (job) => { const x = value(job); return x != null && x !== '' && !Number.isNaN(limit) && compare[sign](Number(x), limit); };
    return (job) => { const x = value(job); return x != null && (String(x).toLowerCase() === wanted || (!Number.isNaN(limit) && x !== '' && Number(x) === limit)); };
  };
  const picks = data.axes.map((axis, a) => {
    if (axis.values.length > 60) return null;
    const select = el('select', { 'aria-label': `Only ${axis.label}` }, option('', 'any'), ...axis.values.map((value, v) => option(v, short(value, 40))));
    $('axis-filters').append(el('label', {}, `${short(axis.label, 24)} `, select));
    select.value = state.get(`f${a}`) ?? '';
    select.addEventListener('change', () => { keep(`f${a}`, select.value); filter(); });
    return select;
  });
  const points = [...document.querySelectorAll('svg .pt')];
  document.addEventListener('pointerover', (event) => {
    const point = event.target.closest?.('svg .pt');
    if (!point || point.querySelector('title')) return;
    const said = document.createElementNS('http://www.w3.org/2000/svg', 'title');
    said.textContent = title(jobs.get(point.dataset.job));
    point.prepend(said);
  });
  const filter = () => {
    const words = [...$('filter').value.toLowerCase().matchAll(/"([^"]*)"|(\S+)/g)].map((m) => m[1] ?? m[2]).filter(Boolean);
    const rules = words.map(rule);
    const kept = new Set();
    for (const row of rows) {
      const job = jobs.get(row.dataset.job);
      const fits = picks.every((select, a) => !select || select.value === '' || job.s[a] === Number(select.value))
        && (!$('only-front').checked || job.front) && rules.every((one) => one(job, texts.get(row)));
      row.hidden = !fits;
      if (fits) kept.add(job.id);
    }
    $('count').textContent = kept.size === rows.length ? `${rows.length} jobs` : `${kept.size} of ${rows.length} jobs`;
    for (const point of points) point.classList.toggle('off', !kept.has(point.dataset.job));
    for (const cell of document.querySelectorAll('#sheet td[data-job]')) cell.classList.toggle('off', !kept.has(cell.dataset.job));
    for (const row of document.querySelectorAll('#sheet tbody tr')) {
      const cells = [...row.querySelectorAll('td[data-job]')];
      row.hidden = cells.length > 0 && cells.every((cell) => cell.classList.contains('off'));
    }
  };
  let waiting;
  $('filter').addEventListener('input', () => { clearTimeout(waiting); waiting = setTimeout(() => { keep('q', $('filter').value); filter(); }, 60); });
  $('filter').addEventListener('keydown', (event) => { if (event.key === 'Escape') $('clear').click(); });
  $('only-front').addEventListener('change', () => { keep('front', $('only-front').checked ? '1' : ''); filter(); });
  $('clear').addEventListener('click', () => {
    $('filter').value = ''; $('only-front').checked = false; keep('q', ''); keep('front', '');
    picks.forEach((select, a) => { if (select) { select.value = ''; keep(`f${a}`, ''); } });
    filter();
  });
  document.addEventListener('sheet', () => filter());
  $('filter').value = state.get('q') ?? '';
  $('only-front').checked = state.get('front') === '1';
  const sorted = /^(\d+)([ad])$/.exec(state.get('sort') ?? '');
  if (sorted && heads[sorted[1]]) sort(Number(sorted[1]), sorted[2] === 'a' ? 1 : -1);
  filter();
}
