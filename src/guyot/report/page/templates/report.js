"use strict";
(() => {
  const root = document.documentElement;
  const data = JSON.parse(document.getElementById("data").textContent);
  const all = (selector, inside = document) => [...inside.querySelectorAll(selector)];

  // -- light and dark ------------------------------------------------------------------------

  const toggle = document.getElementById("theme");
  const themes = ["auto", "light", "dark"];
  const memory = {
    get() { try { return localStorage.getItem("guyot-theme") ?? "auto"; } catch { return "auto"; } },
    set(value) { try { localStorage.setItem("guyot-theme", value); } catch { /* a private window */ } },
  };
  const paint = (theme) => {
    if (theme === "auto") delete root.dataset.theme; else root.dataset.theme = theme;
    toggle.textContent = `Theme: ${theme}`;
    toggle.dataset.now = theme;
  };
  paint(themes.includes(memory.get()) ? memory.get() : "auto");
  toggle.addEventListener("click", () => {
    const next = themes[(themes.indexOf(toggle.dataset.now) + 1) % themes.length];
    memory.set(next);
    paint(next);
  });

  // -- the tooltip ---------------------------------------------------------------------------

  const tip = document.getElementById("tip");
  const made = (tag, ...inside) => {
    const element = document.createElement(tag);
    element.append(...inside);
    return element;
  };
  const list = (pairs) =>
    made("dl", ...pairs.flatMap(([name, value]) => [made("dt", name), made("dd", value)]));
  const table = (heads, lines) => made(
    "table",
    made("tr", ...["", ...heads].map((head) => made("th", head))),
    ...lines.map(([name, values]) => made("tr", made("th", name), ...values.map((value) => made("td", value)))),
  );
  const turned = (heads, lines) => table(
    lines.map(([name]) => name), heads.map((head, place) => [head, lines.map(([, values]) => values[place])]),
  );
  const say = (title, pairs) => [title, ...pairs.map(([name, value]) => `${name} ${value}`)].join(", ");
  const live = document.getElementById("live");
  const announce = (title, pairs) => { live.textContent = say(title, pairs); };
  const show = (spot, title, pairs) => put(spot, title, list(pairs));
  // Beside, below or above what it explains (a rectangle of the window), and never on it.
  const put = (spot, title, body) => {
    tip.replaceChildren(made("b", title), body);
    tip.style.maxWidth = "";
    const gap = 12, edge = 6, wide = root.clientWidth - edge, high = innerHeight - edge;
    let { width, height } = tip.getBoundingClientRect();
    const room = {
      right: wide - spot.right - gap, left: spot.left - gap - edge,
      below: high - spot.bottom - gap, above: spot.top - gap - edge,
    };
    const sides = spot.beside ? ["right", "left", "below", "above"] : ["below", "above", "right", "left"];
    const fits = (side) => room[side] >= (side === "right" || side === "left" ? width : height);
    let side = sides.find(fits);
    if (side === undefined) { // make it narrower
      side = room.right >= room.left ? "right" : "left";
      if (!spot.beside && Math.max(room.right, room.left) < 120) side = room.below >= room.above ? "below" : "above";
      else {
        tip.style.maxWidth = `${Math.max(110, room[side])}px`;
        ({ width, height } = tip.getBoundingClientRect());
      }
    }
    const bounded = (value, least, most) => Math.max(least, Math.min(value, most));
    const across = bounded(spot.x ?? spot.left, edge, wide - width);
    const down = bounded(spot.y ?? spot.top, edge, high - height);
    const [left, top] = {
      right: [spot.right + gap, down], left: [spot.left - gap - width, down],
      below: [across, spot.bottom + gap], above: [across, spot.top - gap - height],
    }[side];
    tip.style.transform = `translate(${left}px, ${top}px)`;
    tip.style.visibility = "visible";
  };
  const spot = (element, more) => {
    const { left, right, top, bottom } = element.getBoundingClientRect();
    return { left: Math.max(0, left), right: Math.min(right, root.clientWidth), top, bottom, ...more };
  };
  let again = null; // what a tooltip of the keyboard shows; it stays when the page scrolls
  const hide = () => { tip.style.visibility = "hidden"; again = null; };
  const keep = (tell) => { tell(); again = tell; };
  document.addEventListener("keydown", (event) => { if (event.key === "Escape") hide(); });
  addEventListener("scroll", () => (again ? again() : hide()), { passive: true });

  // -- runs on and off -----------------------------------------------------------------------

  for (const button of all(".legend button")) {
    button.addEventListener("click", () => {
      const on = button.getAttribute("aria-pressed") !== "true";
      for (const twin of all(`.legend button[data-run="${button.dataset.run}"]`))
        twin.setAttribute("aria-pressed", on);
      for (const part of all(`svg [data-run="${button.dataset.run}"]`))
        part.classList.toggle("hidden", !on);
    });
  }
  const visible = (run) =>
    document.querySelector(`.legend button[data-run="${run}"]`)?.getAttribute("aria-pressed") !== "false";

  // -- marks that only have words ------------------------------------------------------------

  for (const mark of all(".mark")) {
    const tell = () => show(spot(mark), mark.dataset.title, JSON.parse(mark.dataset.pairs));
    mark.addEventListener("pointermove", tell);
    mark.addEventListener("pointerleave", hide);
    mark.addEventListener("focus", () => { if (mark.matches(":focus-visible")) keep(tell); });
    mark.addEventListener("blur", hide);
  }

  // -- curves: one cursor through all panels -------------------------------------------------

  for (const curves of all(".curves")) {
    const { places, unit, last, panels, names } = data.curves;
    const [left, right] = places[curves.dataset.layout];
    const line = curves.querySelector(".cursor");
    const nearest = (xs, x) => {
      let best = -1;
      xs.forEach((value, place) => {
        if (best < 0 || Math.abs(value - x) < Math.abs(xs[best] - x)) best = place;
      });
      return best;
    };
    let epoch = last;
    const titles = panels.map(({ title }) => title);
    const read = () => names.flatMap((name, run) => visible(run)
      ? [[name, panels.map(({ x, text }) => text[run][nearest(x[run], epoch)] ?? "–")]]
      : []);
    const paired = ([, values]) => titles.map((title, place) => [title, values[place]]);
    const where = () => `${unit} ${unit === "step" ? Math.round(epoch) : epoch.toFixed(2)}`;
    const move = (to, y) => {
      epoch = Math.min(last, Math.max(0, to));
      const box = curves.getBoundingClientRect();
      const at = left + (epoch / last) * (right - left);
      line.setAttribute("transform", `translate(${at} 0)`);
      line.style.visibility = "visible";
      const x = box.left + at * (box.width / curves.viewBox.baseVal.width);
      const lines = read(), several = names.length > 1;
      put(
        { left: x, right: x, top: box.top, bottom: box.bottom, beside: true, y: y ?? Math.max(box.top, 60) },
        where(),
        several ? (curves.dataset.layout === "phone" ? turned : table)(titles, lines) : list(paired(lines[0])),
      );
    };
    const press = (to) => {
      keep(() => move(to));
      const spoken = (line) => paired(line).map((pair) => pair.join(" ")).join(", ");
      announce(where(), read().map((line) => [`${line[0]}:`, spoken(line)]));
    };
    const leave = () => { line.style.visibility = "hidden"; hide(); };
    curves.addEventListener("pointermove", (event) => {
      const box = curves.getBoundingClientRect();
      const at = ((event.clientX - box.left) / box.width) * curves.viewBox.baseVal.width;
      if (at < left - 6 || at > right + 6) return leave();
      move(((at - left) / (right - left)) * last, event.clientY + 16);
    });
    curves.addEventListener("pointerleave", leave);
    curves.addEventListener("blur", leave);
    curves.addEventListener("focus", () => { if (curves.matches(":focus-visible")) press(epoch); });
    curves.addEventListener("keydown", (event) => {
      const step = event.shiftKey ? last / 10 : last / 100;
      const to = { ArrowLeft: epoch - step, ArrowRight: epoch + step, Home: 0, End: last }[event.key];
      if (to === undefined) return;
      event.preventDefault();
      press(to);
    });
  }

  // -- the network: rows with a roving focus, and a slider through discovery -------------------

  const nats = (value) => `${Number(value.toPrecision(2))} nats`;
  const part = (value, whole) => `${(whole ? (100 * value) / whole : 0).toFixed(0)} %`;

  for (const figure of all(".network")) {
    const { steps, groups, layers, blocks, macs, full } = data.networks[figure.dataset.network];
    const marks = all(".block", figure);
    const slider = figure.querySelector("input"), output = figure.querySelector("output");
    let now = steps.length - 1;

    const pairs = (block) => {
      const found = [];
      if (block.layer !== null) {
        const layer = layers[block.layer];
        const theta = layer.theta[now];
        found.push(["layer θ", theta < 0 ? "gone" : `${theta} %`]);
        if (theta >= 0 && now < steps.length - 1)
          found.push(["layer benefit", nats(layer.benefit[now])], ["layer price", nats(layer.price[now])]);
      }
      for (const number of block.groups) {
        const { name, size, stride, expected, price, earned } = groups[number];
        const short = block.groups.length > 1 ? `${name.split(".").at(-1)} ` : "";
        found.push([`${short}units expected`, `${Number(expected[now].toFixed(1))} of ${size}`]);
        if (stride > 1) found.push([`${short}entries of a unit`, stride]);
        found.push([`${short}mean θ`, part(expected[now], size)]);
        if (now < steps.length - 1 && expected[now] > 0)
          found.push(
            [`${short}benefit of all units`, nats(earned[now])],
            [`${short}price of a unit`, nats(price[now])],
          );
      }
      found.push(["MACs in the end", block.macs]);
      return found;
    };
    const title = (block) => `${block.name}${steps.length ? `, step ${steps[now]}` : ""}`;

    marks.forEach((mark, place) => {
      const block = blocks[place];
      const tell = (x) => show(spot(mark.querySelector(".hit"), { x }), title(block), pairs(block));
      mark.addEventListener("pointermove", (event) => tell(event.clientX));
      mark.addEventListener("pointerleave", hide);
      mark.addEventListener("blur", hide);
      mark.addEventListener("focus", () => {
        mark.setAttribute("aria-label", say(title(block), pairs(block)));
        if (mark.matches(":focus-visible")) keep(() => tell(root.clientWidth));
      });
      mark.addEventListener("keydown", (event) => {
        const to = { ArrowUp: place - 1, ArrowDown: place + 1, Home: 0, End: marks.length - 1 }[event.key];
        if (!marks[to]) return;
        event.preventDefault();
        marks[place].tabIndex = -1;
        marks[to].tabIndex = 0;
        marks[to].focus();
      });
    });

    const end = all("[data-group], [data-macs]", figure).map((element) => [
      element, element.getAttribute("width"), element.textContent,
    ]);
    const count = (value) => {
      const [size, name] = [[1e9, " G"], [1e6, " M"], [1e3, " k"]].find(([unit]) => value >= unit) ?? [1, ""];
      return `${Number((value / size).toPrecision(3))}${name}`;
    };
    const total = () => macs.reduce((sum, values) => sum + values[now], 0) / full;
    const draw = () => {
      const over = now === steps.length - 1;
      for (const [element, width, text] of end) {
        if (element.dataset.macs !== undefined) {
          const value = macs?.[element.dataset.macs][now], block = blocks[element.dataset.macs];
          if (over || value === undefined) {
            if (width === null) element.textContent = text; else element.setAttribute("width", width);
          } else if (width === null) element.textContent = `${count(block.full)} → ${count(value)}`;
          else element.setAttribute("width", (element.dataset.full * value) / (block.full || 1));
          continue;
        }
        const { size, expected } = groups[element.dataset.group];
        if (width === null)
          element.textContent = over ? text : `${size} → ${expected[now].toFixed(1)}`;
        else
          element.setAttribute("width", over ? width : (element.dataset.full * expected[now]) / size);
      }
      marks.forEach((mark, place) => {
        const { layer } = blocks[place];
        if (layer !== null) mark.classList.toggle("gone", layers[layer].theta[now] < 0);
      });
      output.textContent = over ? "as it ended"
        : `step ${steps[now]}: ${macs ? `expected widths, ${(100 * total()).toFixed(1)} % of the MACs` : "widths that are expected"}`;
      slider.setAttribute("aria-valuetext", output.textContent);
    };
    slider?.addEventListener("input", () => { now = Number(slider.value); draw(); });
  }

  // -- keep probabilities: a cell cursor in every map ------------------------------------------

  for (const svg of all(".heat svg")) {
    const run = data.heats[svg.dataset.network];
    const { title, names, went, theta } = run.maps[Number(svg.dataset.map)];
    const cell = svg.querySelector(".cell");
    const { plot, height } = data.heat;
    const columns = run.steps.length, moving = Math.max(1, columns - 1);
    const first = run.steps[0], final = run.steps.at(-1);
    let row = 0, column = 0, codes = null;

    const at = () => {
      codes ??= Uint8Array.from(atob(theta), (letter) => letter.charCodeAt(0));
      return codes[row * columns + column];
    };
    const words = () => {
      const value = at();
      const found = [["step", run.steps[column]], ["θ", value === 255 ? "gone" : `${value} %`]];
      if (went[row] !== null) found.push(["went at step", went[row]]);
      return [`${title}, ${names[row]}`, found];
    };
    const place = () => {
      const from = ((run.steps[column] - first) / Math.max(1, final - first)) * plot;
      const settled = column === columns - 1;
      const to = settled ? 0 : ((run.steps[column + 1] - first) / Math.max(1, final - first)) * plot;
      cell.setAttribute("x", settled ? plot + 3 : from);
      cell.setAttribute("width", settled ? data.heat.settled : Math.max(1, to - from));
      cell.setAttribute("y", (row * height) / names.length);
      cell.setAttribute("height", height / names.length);
      cell.style.visibility = "visible";
    };
    const leave = () => { cell.style.visibility = "hidden"; hide(); };
    svg.addEventListener("pointermove", (event) => {
      const box = svg.getBoundingClientRect(), view = svg.viewBox.baseVal;
      const x = ((event.clientX - box.left) / box.width) * view.width + view.x;
      const y = ((event.clientY - box.top) / box.height) * view.height + view.y;
      if (y < 0 || y >= height || x < 0) return leave();
      row = Math.min(names.length - 1, Math.floor((y / height) * names.length));
      const step = first + (x / plot) * (final - first);
      column = x > plot + 1 ? columns - 1 : run.steps.findLastIndex((value, i) => value <= step && i < moving);
      column = Math.max(0, column);
      place();
      show(spot(cell), ...words());
    });
    svg.addEventListener("pointerleave", leave);
    svg.addEventListener("blur", leave);
    const tell = () => {
      place();
      keep(() => show(spot(cell), ...words()));
      announce(...words());
    };
    svg.addEventListener("focus", () => { if (svg.matches(":focus-visible")) tell(); });
    svg.addEventListener("keydown", (event) => {
      const [down, right] = {
        ArrowUp: [-1, 0], ArrowDown: [1, 0], ArrowLeft: [0, -1], ArrowRight: [0, 1],
        Home: [0, -columns], End: [0, columns],
      }[event.key] ?? [];
      if (down === undefined) return;
      event.preventDefault();
      row = Math.min(names.length - 1, Math.max(0, row + down));
      column = Math.min(columns - 1, Math.max(0, column + right));
      tell();
    });
  }
})();
