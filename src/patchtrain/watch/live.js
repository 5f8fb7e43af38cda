// The live page: asks for what is new once a second, and draws it. It fetches nothing but `data`.
(function () {
  'use strict';
  var EVERY = 1000, WHEN_OVER = 5000, WHEN_LOST = 1500, POINTS = 400;
  var KINDS = {patch: 'patch loss, training', token: 'token loss, training',
    validation: 'token loss, validation'};
  var LABELS = {flops: 'compute', step: 'steps', tokens: 'tokens read', seconds: 'training time'};
  var chosen = null, run = null, generation = '', points = [], heard = null, axis = 'flops', drawn = '';

  function byId(id) { return document.getElementById(id); }
  function add(parent, name, words, kind) {
    var element = document.createElement(name);
    if (words !== undefined) element.textContent = words;
    if (kind) element.className = kind;
    parent.appendChild(element);
    return element;
  }
  function fill(parent, make) {  // leaves what has the focus or is selected alone if nothing changed
    var fresh = parent.cloneNode(false);
    make(fresh);
    if (fresh.innerHTML !== parent.innerHTML) parent.replaceChildren.apply(parent, fresh.childNodes);
  }

  // ---- what the server says

  function poll() {
    var asked = chosen;
    var query = new URLSearchParams({generation: generation, after: points.length});
    if (chosen !== null) query.set('run', chosen);
    fetch('data?' + query, {cache: 'no-store', signal: AbortSignal.timeout(10000)})
      .then(function (answer) {
        if (answer.status === 400) chosen = null;  // a run that is gone
        if (!answer.ok) throw new Error(String(answer.status));
        return answer.json();
      })
      .then(function (news) {
        if (asked !== chosen) return 0;
        take(news);
        show(news);
        if (news.more) return 0;
        return news.runs.every(function (one) { return one.over; }) ? WHEN_OVER : EVERY;
      })
      .catch(function () { lost(); return WHEN_LOST; })
      .then(function (wait) { setTimeout(poll, wait); });
  }
  function take(news) {
    if (news.generation !== generation || news.from !== points.length) points = [];
    if (news.from !== points.length) return;  // it was of another time: ask for all
    generation = news.generation;
    run = news.run;
    news.points.forEach(function (values) {
      var point = {};
      news.fields.forEach(function (field, i) { point[field] = values[i]; });
      points.push(point);
    });
  }
  function lost() {
    document.body.dataset.server = 'lost';
    var since = heard ? ' Shown is how it stood at ' + heard.toLocaleTimeString() + '.' : '';
    byId('lost').textContent = 'The server does not answer: patchtrain watch has ended, or is ' +
      'starting again.' + since;
    byId('lost').hidden = false;
  }

  // ---- words

  function show(news) {
    heard = new Date();
    document.body.dataset.server = 'there';
    byId('lost').hidden = true;
    var state = news.runs.find(function (one) { return one.key === run; }) || null;
    byId('several').hidden = !news.several;
    if (news.several) table(news);
    document.body.dataset.status = state ? state.status : 'waiting';
    document.body.dataset.points = points.length;
    document.title = (state ? state.percent + ' ' + state.name : news.title) + ' - patchtrain';
    byId('headline').textContent = state ? state.headline : news.title + ' has no run yet';
    fill(byId('problems'), function (place) {
      (state ? state.problems : []).forEach(function (words) { add(place, 'p', words); });
    });
    byId('problems').hidden = !state || !state.problems.length;
    fill(byId('facts'), function (place) {
      (state ? state.facts : []).forEach(function (fact) {
        var card = add(place, 'div', undefined, 'card');
        add(card, 'dt', fact[0]);
        add(card, 'dd', fact[1]);
      });
    });
    bar(state);
    draw();
  }
  function table(news) {
    byId('summary').textContent = news.summary;
    var focused = document.activeElement.dataset.run;
    fill(byId('runs'), function (place) {
      var head = add(add(place, 'thead'), 'tr');
      news.columns.forEach(function (name) { add(head, 'th', name); });
      var body = add(place, 'tbody');
      news.runs.forEach(function (one) {
        var row = add(body, 'tr', undefined, one.key === run ? 'chosen' : '');
        one.cells.forEach(function (words, i) {
          if (i) { add(row, 'td', words, i === 1 ? 'status ' + one.status : ''); return; }
          var button = add(add(row, 'th'), 'button', words);
          button.type = 'button';
          button.dataset.run = one.key;
          button.setAttribute('aria-pressed', String(one.key === run));
        });
      });
    });
    byId('runs').querySelectorAll('button').forEach(function (button) {
      if (button.dataset.run === focused) button.focus();
    });
  }
  byId('runs').addEventListener('click', function (event) {
    var key = event.target.dataset.run;
    if (key === undefined || key === chosen) return;
    chosen = run = key;
    generation = '';
    points = [];
  });

  // ---- drawing

  function shape(parent, name, attributes, words) {
    var element = document.createElementNS('http://www.w3.org/2000/svg', name);
    Object.keys(attributes).forEach(function (key) { element.setAttribute(key, attributes[key]); });
    if (words !== undefined) element.textContent = words;
    parent.appendChild(element);
    return element;
  }
  function bar(state) {
    var svg = byId('bar'), width = svg.clientWidth || 300;
    var shown = JSON.stringify([state && state.share, state && state.switches, width]);
    if (shown === svg.dataset.shown) return;
    svg.dataset.shown = shown;
    svg.replaceChildren();
    svg.setAttribute('viewBox', '0 0 ' + width + ' 22');
    shape(svg, 'rect', {'class': 'all', x: 0, y: 6, width: width, height: 10, rx: 3});
    if (!state) return;
    shape(svg, 'rect', {'class': 'done', x: 0, y: 6, width: state.share * width, height: 10, rx: 3});
    state.switches.forEach(function (share) {
      shape(svg, 'line', {'class': 'switch', x1: share * width, x2: share * width, y1: 0, y2: 22});
    });
    svg.setAttribute('aria-label', state.percent + ' of the compute is done');
  }
  function averaged(rows) {
    var size = Math.max(1, Math.ceil(rows.length / POINTS)), means = [];
    for (var i = 0; i < rows.length; i += size) {
      var group = rows.slice(i, i + size), sum = 0;
      group.forEach(function (row) { sum += row.loss; });
      means.push(Object.assign({}, group[group.length - 1], {loss: sum / group.length}));
    }
    return means;
  }
  function curves() {
    var train = {}, validation = [];
    points.forEach(function (point) {
      if (point.loss === null) return;
      if (point.event === 'train') (train[point.stage] = train[point.stage] || []).push(point);
      if (point.event === 'eval') validation.push(point);
    });
    var found = Object.keys(train).map(Number).sort(function (a, b) { return a - b; })
      .map(function (stage) {
        var kind = train[stage][0].patch_size > 1 ? 'patch' : 'token';
        return {kind: kind, points: averaged(train[stage])};
      });
    if (validation.length) found.push({kind: 'validation', points: validation});
    return found;
  }
  function range(found) {  // the steep fall of the first steps may lie above
    var right = 0, all = [], shown = [];
    found.forEach(function (curve) {
      curve.points.forEach(function (p) { right = Math.max(right, p[axis]); all.push(p); });
    });
    shown = all.filter(function (p) { return p[axis] >= 0.04 * right; })
      .map(function (p) { return p.loss; }).sort(function (a, b) { return a - b; });
    var low = shown[0], high = shown[Math.min(shown.length - 1, Math.floor(0.985 * shown.length))];
    var space = 0.06 * (high - low) || 0.05 * Math.abs(high) || 1;
    return {right: right || 1, low: low - space, high: high + space};
  }
  function ticks(low, high, most) {
    var rough = (high - low) / most, size = Math.pow(10, Math.floor(Math.log10(rough)));
    var step = [1, 2, 5, 10].map(function (n) { return n * size; })
      .find(function (n) { return n >= rough; });
    var found = [];
    for (var n = Math.ceil(low / step); n * step <= high; n++) found.push(n * step);
    return found;
  }
  function scaled(largest) {
    if (axis === 'seconds') {
      return largest >= 7200 ? [3600, ' h'] : largest >= 120 ? [60, ' min'] : [1, ' s'];
    }
    var letters = axis === 'flops' ? ['', 'k', 'M', 'G', 'T', 'P', 'E', 'Z', 'Y'] :
      ['', 'k', 'M', 'B', 'T'];
    var power = largest < 1e4 && axis !== 'flops' ? 0 :
      Math.min(letters.length - 1, Math.max(0, Math.floor(Math.log10(largest) / 3)));
    return [Math.pow(1000, power), letters[power] + (axis === 'flops' ? 'FLOP' : '')];
  }
  function figure(value) { return String(Number(value.toPrecision(3))); }
  var place = null;  // of a point of the figure, for the pointer

  function draw() {
    var svg = byId('plot'), found = curves();
    var width = svg.clientWidth || 300, height = svg.clientHeight || 300;
    var now = [generation, points.length, axis, width].join();
    if (now === drawn) return;
    drawn = now;
    svg.replaceChildren();
    svg.setAttribute('viewBox', '0 0 ' + width + ' ' + height);
    place = null;
    byId('none').hidden = found.length > 0;
    legend(found);
    if (!found.length) return;
    var at = range(found), left = 46, right = width - 8, top = 8, bottom = height - 40;
    function x(value) { return left + value / at.right * (right - left); }
    function y(loss) { return top + (at.high - loss) / (at.high - at.low) * (bottom - top); }
    var unit = scaled(at.right);
    ticks(at.low, at.high, 6).forEach(function (loss) {
      shape(svg, 'line', {'class': 'grid', x1: left, x2: right, y1: y(loss), y2: y(loss)});
      shape(svg, 'text', {x: left - 6, y: y(loss) + 4, 'text-anchor': 'end'}, figure(loss));
    });
    ticks(0, at.right / unit[0], Math.max(2, Math.floor(width / 110))).forEach(function (value) {
      shape(svg, 'text', {x: x(value * unit[0]), y: bottom + 18, 'text-anchor': 'middle'},
        figure(value));
    });
    shape(svg, 'text', {x: right, y: height - 4, 'text-anchor': 'end'},
      LABELS[axis] + (unit[1] ? ' (' + unit[1].trim() + ')' : ''));
    shape(svg, 'text', {x: 0, y: height - 4}, 'nats per token');
    var clip = shape(svg, 'clipPath', {id: 'inside'});
    shape(clip, 'rect', {x: left, y: top, width: right - left, height: bottom - top});
    var inside = shape(svg, 'g', {'clip-path': 'url(#inside)'});
    points.forEach(function (point) {
      if (point.event !== 'switch') return;
      var to = point.patch_size === 1 ? 'tokens' : 'patches of ' + point.patch_size;
      var here = x(point[axis]), before = here > (left + right) / 2;
      shape(inside, 'line', {'class': 'switch', x1: here, x2: here, y1: top, y2: bottom});
      shape(svg, 'text', {'class': 'switch-label', x: here + (before ? -5 : 5), y: top + 12,
        'text-anchor': before ? 'end' : 'start'}, 'switch to ' + to);
    });
    found.forEach(function (curve) {
      shape(inside, 'polyline', {'class': 'curve ' + curve.kind, points: curve.points
        .map(function (p) { return x(p[axis]).toFixed(1) + ',' + y(p.loss).toFixed(1); }).join(' ')});
      if (curve.kind !== 'validation') return;
      curve.points.forEach(function (p) {
        shape(inside, 'circle', {'class': 'validation', cx: x(p[axis]), cy: y(p.loss), r: 3});
      });
    });
    var cursor = shape(svg, 'line', {'class': 'cursor', y1: top, y2: bottom, visibility: 'hidden'});
    place = {x: x, found: found, cursor: cursor};
  }
  function legend(found) {
    fill(byId('kinds'), function (where) {
      Object.keys(KINDS).forEach(function (kind) {
        if (found.some(function (curve) { return curve.kind === kind; })) {
          add(where, 'span', KINDS[kind], kind);
        }
      });
    });
  }
  byId('plot').addEventListener('pointermove', function (event) {
    if (!place) return;
    var at = event.clientX - byId('plot').getBoundingClientRect().left, words = [], nearest = null;
    place.found.forEach(function (curve) {
      var close = curve.points.reduce(function (best, p) {
        return Math.abs(place.x(p[axis]) - at) < Math.abs(place.x(best[axis]) - at) ? p : best;
      });
      var far = Math.abs(place.x(close[axis]) - at);
      if (far > 30) return;
      if (!nearest || far < nearest.far) nearest = {far: far, point: close};
      words.push(KINDS[curve.kind] + ' ' + close.loss.toFixed(3));
    });
    if (!nearest) return;
    place.cursor.setAttribute('x1', place.x(nearest.point[axis]));
    place.cursor.setAttribute('x2', place.x(nearest.point[axis]));
    place.cursor.setAttribute('visibility', 'visible');
    byId('reading').textContent = 'step ' + nearest.point.step.toLocaleString('en') + ': ' +
      words.join(', ');
  });
  byId('axes').addEventListener('click', function (event) {
    if (!event.target.dataset.axis) return;
    axis = event.target.dataset.axis;
    byId('axes').querySelectorAll('button').forEach(function (button) {
      button.setAttribute('aria-pressed', String(button.dataset.axis === axis));
    });
    draw();
  });
  window.addEventListener('resize', draw);
  poll();
})();
