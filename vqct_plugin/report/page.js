"use strict";
(() => {
  const data = JSON.parse(document.getElementById("data").textContent);
  const $ = (selector, from = document) => from.querySelector(selector);
  const make = (tag, attributes = {}, ...children) => {
    const element = document.createElement(tag);
    for (const [name, value] of Object.entries(attributes)) {
      if (name.startsWith("on")) element.addEventListener(name.slice(2), value);
      else element.setAttribute(name, value);
    }
    element.append(...children);
    return element;
  };
  const shown = { image: 0, run: Math.max(0, data.runs.findIndex((run) => run.named)), layer: 0, cell: null };
  const maps = $("#maps"), stage = $(".stage"), photograph = $(".stage img");
  const color = $("canvas.color"), marks = $("canvas.marks"), tip = $(".tip"), readout = $(".readout");
  const thumbs = $(".thumbs"), run = () => data.runs[shown.run];
  const codesAt = (image, cell) => run().maps[image].map((layer) => layer[cell]);

  // word maps
  const choose = (change) => { Object.assign(shown, change); draw(); };
  // buttons that are there already stay, and with them the focus
  const buttons = (box, names, selected, onchoose) => {
    if (JSON.stringify([...box.children].map((button) => button.textContent)) !== JSON.stringify(names))
      box.replaceChildren(...names.map((name, i) => make("button", { type: "button", onclick: () => onchoose(i) }, name)));
    [...box.children].forEach((button, i) => button.setAttribute("aria-pressed", String(i === selected)));
  };

  const draw = () => {
    const { image, layer } = shown, its = run(), [rows, columns] = its.grid;
    if (layer > its.layers.length) return choose({ layer: 0 });
    photograph.src = data.images[image].src;
    photograph.alt = data.images[image].name;
    [...thumbs.children].forEach((thumb, i) => {
      thumb.setAttribute("aria-selected", String(i === image));
      thumb.tabIndex = i === image ? 0 : -1; // one stop for Tab; arrow keys go on from it
    });
    buttons($(".runs"), data.runs.length > 1 ? data.runs.map((r) => r.name) : [], shown.run, (i) => choose({ run: i, cell: null }));
    buttons($(".layers"), ["photograph", ...its.layers.map((name) => `${name} map`)], layer, (i) => choose({ layer: i }));
    color.width = columns; color.height = rows;
    const pen = color.getContext("2d");
    color.style.opacity = layer ? "0.88" : "0";
    if (layer) its.maps[image][layer - 1].forEach((code, cell) => {
      pen.fillStyle = its.colors[code];
      pen.fillRect(cell % columns, Math.floor(cell / columns), 1, 1);
    });
    const box = $(".telling");
    const set = data.images[image].set, all = data.images.filter((other) => other.set === set).length;
    box.replaceChildren(make("h3", {}, `${its.named ? "Words" : "Codes"} that tell ${set === null ? "this image" : set} apart`),
      make("p", {}, set === null ? "More frequent here than in the other images, the most telling first."
        : `More frequent in its ${all} images than in the others, the most telling first.`));
    const chips = (codes) => make("div", { class: "chips" }, ...codes.map((code) =>
      make("button", { type: "button", onclick: (event) => find(its.words[code], event) }, its.words[code])));
    box.append(chips(its.telling[image]), make("h3", {}, "Most used here"), chips(its.commonest[image]));
    point(shown.cell);
  };

  const point = (cell) => {
    shown.cell = cell;
    const its = run(), [rows, columns] = its.grid, size = 1024;
    marks.width = size; marks.height = Math.round(size * rows / columns);
    const w = marks.width / columns, h = marks.height / rows, pen = marks.getContext("2d");
    if (cell === null) { tip.hidden = true; readout.textContent = `${data.images[shown.image].name}, ${rows} × ${columns} positions`; return; }
    const codes = codesAt(shown.image, cell), layer = Math.max(0, shown.layer - 1);
    const alike = its.maps[shown.image][layer];
    let same = 0;
    alike.forEach((code, at) => {
      if (code !== codes[layer]) return;
      same += 1;
      outline(pen, at % columns * w, Math.floor(at / columns) * h, w, h, size / 400);
    });
    outline(pen, cell % columns * w, Math.floor(cell / columns) * h, w, h, size / 130);
    const lines = codes.map((code) => {
      const swatch = make("i"); swatch.style.background = its.colors[code];
      return make("div", {}, swatch, its.words[code], make("small", {}, its.named ? ` ${its.parts[its.part[code]]}` : ""));
    });
    tip.replaceChildren(...lines);
    tip.hidden = false;
    const left = (cell % columns + .5) / columns, top = (Math.floor(cell / columns) + .5) / rows;
    tip.style.left = `${left * 100}%`; tip.style.top = `${top * 100}%`;
    tip.style.transform = `translate(${left > .6 ? "calc(-100% - 14px)" : "14px"}, ${top > .6 ? "calc(-100% - 10px)" : "10px"})`;
    readout.textContent = `row ${Math.floor(cell / columns) + 1}, column ${cell % columns + 1}: ` +
      codes.map((code) => its.words[code]).join(" + ") + `. “${its.words[codes[layer]]}” stands at ${same} of ${alike.length} positions; ` +
      `by chance (its share of all images here) it would be ${byChance(layer, codes[layer]).toFixed(1)}.`;
  };

  // positions of an image that a code would have if it were as frequent in each
  const byChance = (layer, code) => run().maps.reduce((sum, layers) =>
    sum + layers[layer].reduce((number, other) => number + (other === code), 0), 0) / data.images.length;

  const outline = (pen, x, y, w, h, width) => {
    pen.lineWidth = width * 2; pen.strokeStyle = "rgb(0 0 0 / .75)"; pen.strokeRect(x, y, w, h);
    pen.lineWidth = width; pen.strokeStyle = "#fff"; pen.strokeRect(x, y, w, h);
  };

  const under = (event) => {
    const box = stage.getBoundingClientRect(), [rows, columns] = run().grid;
    const column = Math.floor((event.clientX - box.left) / box.width * columns);
    const row = Math.floor((event.clientY - box.top) / box.height * rows);
    return column < 0 || row < 0 || column >= columns || row >= rows ? null : row * columns + column;
  };
  stage.addEventListener("pointermove", (event) => point(under(event)));
  stage.addEventListener("pointerdown", (event) => point(under(event)));
  stage.addEventListener("pointerleave", (event) => { if (event.pointerType === "mouse") point(null); });
  stage.addEventListener("keydown", (event) => {
    const [rows, columns] = run().grid;
    const step = { ArrowLeft: [0, -1], ArrowRight: [0, 1], ArrowUp: [-1, 0], ArrowDown: [1, 0] }[event.key];
    if (!step) return;
    event.preventDefault();
    const at = shown.cell ?? 0;
    const row = Math.min(rows - 1, Math.max(0, Math.floor(at / columns) + step[0]));
    const column = Math.min(columns - 1, Math.max(0, at % columns + step[1]));
    point(shown.cell === null ? 0 : row * columns + column);
  });

  // search
  const finder = $("#finder"), input = $("#finder input"), found = $(".found"), patches = $(".patches");
  const places = data.runs.map((its) => {
    const of = new Map();
    its.maps.forEach((layers, image) => layers.forEach((codes) => codes.forEach((code, cell) => {
      if (!of.has(code)) of.set(code, []);
      of.get(code).push([image, cell]);
    })));
    for (const [code, all] of of) of.set(code, spread(all));
    return of;
  });

  // the first of each image first, so that a page of patches shows many images
  function spread(all) {
    const seen = new Map();
    return all.map(([image, cell]) => {
      const turn = seen.get(image) ?? 0;
      seen.set(image, turn + 1);
      return [turn, image, cell];
    }).sort((a, b) => a[0] - b[0]).map(([, image, cell]) => [image, cell]);
  }

  const matches = (text) => {
    const wanted = text.trim().toLowerCase(), every = [];
    data.runs.forEach((its, r) => places[r].forEach((all, code) => {
      const word = its.words[code].toLowerCase();
      if (word.includes(wanted) && (wanted || its.named)) every.push({ r, code, number: all.length, rank: word === wanted ? 0 : word.startsWith(wanted) ? 1 : 2 });
    }));
    return every.sort((a, b) => a.rank - b.rank || b.number - a.number);
  };

  const suggest = () => {
    const every = matches(input.value);
    $(".suggestions").replaceChildren(...every.slice(0, 18).map((match) => {
      const its = data.runs[match.r], kind = its.named ? its.parts[its.part[match.code]] : its.name;
      return make("button", { type: "button", onclick: () => showPatches(match) }, its.words[match.code], make("small", {}, ` ${kind}, ${match.number}`));
    }));
    if (every.length && input.value.trim()) showPatches(every[0]);
    else {
      patches.replaceChildren();
      found.textContent = every.length ? "The most used words; type to find others." : notThere(input.value.trim());
    }
  };

  const notThere = (word) => data.runs.some((its) => its.words.some((other) => other.toLowerCase() === word.toLowerCase()))
    ? `“${word}” is in the codebook, but in none of these images.` : `No codebook here has the word “${word}”.`;

  const loaded = data.images.map((image) => {
    const element = new Image();
    element.src = image.src;
    return element;
  });

  const showPatches = ({ r, code, number }, many = 48, from = 0) => {
    const its = data.runs[r], [rows, columns] = its.grid, all = places[r].get(code);
    const images = new Set(all.map(([image]) => image)).size;
    found.textContent = `“${its.words[code]}”${its.named ? `, ${its.parts[its.part[code]]}` : ""} of ${its.name}: ${number} ${number === 1 ? "patch" : "patches"} in ${images} of ${data.images.length} images`;
    const wanted = all.slice(from, many).map(([image, cell]) => {
      const canvas = make("canvas");
      const label = `${its.words[code]} in ${data.images[image].name}, row ${Math.floor(cell / columns) + 1}, column ${cell % columns + 1}`;
      const h = data.size[0] / rows, w = data.size[1] / columns, reach = Math.max(1, Math.round(10 / Math.max(h, w)));
      const span = 2 * reach + 1, scale = Math.max(1, Math.round(160 / (span * w)));
      canvas.width = span * w * scale; canvas.height = span * h * scale;
      const pen = canvas.getContext("2d");
      pen.imageSmoothingEnabled = false;
      const x = cell % columns - reach, y = Math.floor(cell / columns) - reach;
      const paint = () => {
        pen.drawImage(loaded[image], x * w, y * h, span * w, span * h, 0, 0, canvas.width, canvas.height);
        outline(pen, reach * w * scale, reach * h * scale, w * scale, h * scale, Math.max(1, canvas.width / 90));
      };
      if (loaded[image].complete && loaded[image].naturalWidth) paint(); else loaded[image].addEventListener("load", paint);
      return make("button", { type: "button", title: label, "aria-label": label, onclick: () => {
        const layer = its.maps[image].findIndex((codes) => codes[cell] === code);
        choose({ run: r, image, cell, layer: layer + 1 });
        $("#words").scrollIntoView();
        stage.focus({ preventScroll: true });
      } }, canvas);
    });
    if (from) $(".more", patches).replaceWith(...wanted); else patches.replaceChildren(...wanted);
    if (all.length > many) patches.append(make("button", { type: "button", class: "more", onclick: () => showPatches({ r, code, number }, many + 96, many) }, `${all.length - many} more`));
    if (from) wanted[0].focus({ preventScroll: true }); // the button that had it is gone
  };

  const find = (word, event) => {
    input.value = word;
    suggest();
    $("#search").scrollIntoView();
    if (event.detail === 0) input.focus({ preventScroll: true }); // by a key: the next key is for what is seen now
  };

  thumbs.append(...data.images.map((image, i) => make("button",
    { type: "button", role: "option", title: image.name, onclick: () => choose({ image: i, cell: null }) },
    make("img", { src: image.src, alt: image.name }))));
  thumbs.addEventListener("keydown", (event) => {
    const all = [...thumbs.children], across = Math.max(1, all.findIndex((thumb) => thumb.offsetTop > all[0].offsetTop));
    const steps = { ArrowLeft: -1, ArrowRight: 1, ArrowUp: -across, ArrowDown: across, Home: -all.length, End: all.length };
    if (!(event.key in steps)) return;
    event.preventDefault();
    const beyond = shown.image + steps[event.key];
    const to = event.key === "Home" ? 0 : event.key === "End" ? all.length - 1 : beyond;
    if (to < 0 || to >= all.length) return;
    choose({ image: to, cell: null });
    all[to].focus();
  });
  maps.hidden = finder.hidden = false;
  input.addEventListener("input", suggest);
  shown.layer = 0;
  draw();
  suggest();

  // planes of words
  const vector = (tag, attributes = {}) => {
    const element = document.createElementNS("http://www.w3.org/2000/svg", tag);
    for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, value);
    return element;
  };
  const fields = [...document.querySelectorAll(".plane")].map((figure) => {
    const its = data.planes[figure.dataset.plane], points = its[figure.dataset.side], field = $(".field", figure);
    const svg = vector("svg"), view = { zoom: 1, x: .5, y: .5 }, margin = 14;
    const marked = points.map((_, i) => {
      const group = vector("g"), text = vector("text");
      text.textContent = its.words[i];
      group.append(vector("circle", { r: 4, fill: its.colors[i] }), text);
      return group;
    });
    svg.append(...[...marked].reverse()); // the most used on top
    let width = 0, height = 0, side = 0, sizes = null, pointed = null;
    const place = ([x, y]) => [width / 2 + (x - view.x) * side * view.zoom, height / 2 + (y - view.y) * side * view.zoom];

    const update = () => {
      const half = .5 / view.zoom;
      view.x = Math.min(1 - half, Math.max(half, view.x));
      view.y = Math.min(1 - half, Math.max(half, view.y));
      field.classList.toggle("zoomed", view.zoom > 1);
      const taken = [];
      const free = (box) => box[0] >= 2 && box[1] >= 2 && box[2] <= width - 2 && box[3] <= height - 2 &&
        !taken.some((other) => box[0] < other[2] && other[0] < box[2] && box[1] < other[3] && other[1] < box[3]);
      if (!sizes) sizes = marked.map((group) => { const box = group.lastChild.getBBox(); return [box.width + 3, box.height]; });
      const order = points.map((_, i) => i);
      if (pointed !== null) order.splice(0, 0, ...order.splice(pointed, 1));
      for (const i of order) {
        const [x, y] = place(points[i]), [w, h] = sizes[i].map((size) => i === pointed ? size * 1.2 : size), [circle, text] = marked[i].children;
        circle.setAttribute("cx", x); circle.setAttribute("cy", y);
        const boxes = [[x + 5, y - h / 2], [x - 5 - w, y - h / 2], [x - w / 2, y - h - 4], [x - w / 2, y + 4]].map(([left, top]) => [left, top, left + w, top + h]);
        const box = boxes.find(free);
        text.style.display = box ? "" : "none";
        if (!box) continue;
        taken.push(box);
        text.setAttribute("x", box[0] + 1.5); text.setAttribute("y", box[1] + h * .78);
      }
    };
    const resize = () => {
      const now = field.clientWidth;
      if (!now || now === width) return;
      width = now; height = Math.round(now * .9); side = Math.min(width, height) - 2 * margin;
      svg.setAttribute("viewBox", `0 0 ${width} ${height}`);
      update();
    };
    const zoom = (by, at = [width / 2, height / 2]) => {
      const before = view.zoom, now = Math.min(16, Math.max(1, before * by));
      view.x += (at[0] - width / 2) / side * (1 / before - 1 / now);
      view.y += (at[1] - height / 2) / side * (1 / before - 1 / now);
      view.zoom = now;
      update();
    };
    const move = (x, y) => { view.x += x / view.zoom; view.y += y / view.zoom; update(); };
    const mark = (i) => {
      if (i === pointed) return;
      if (pointed !== null) marked[pointed].classList.remove("pointed");
      pointed = i;
      if (i !== null) { marked[i].classList.add("pointed"); svg.append(marked[i]); }
      update();
    };
    const within = (event) => {
      const box = svg.getBoundingClientRect();
      return [(event.clientX - box.left) * width / box.width, (event.clientY - box.top) * height / box.height];
    };
    let held = null;
    svg.addEventListener("pointerdown", (event) => { if (view.zoom > 1) { held = within(event); svg.setPointerCapture(event.pointerId); } });
    svg.addEventListener("pointerup", () => { held = null; });
    svg.addEventListener("pointercancel", () => { held = null; });
    svg.addEventListener("pointermove", (event) => {
      const [x, y] = within(event);
      if (held) { move((held[0] - x) / side, (held[1] - y) / side); held = [x, y]; return; }
      const near = points.map((point, i) => { const [a, b] = place(point); return [Math.hypot(a - x, b - y), i]; })
        .reduce((a, b) => b[0] < a[0] ? b : a);
      pair(figure.dataset.plane, near[0] < 14 ? near[1] : null);
    });
    svg.addEventListener("pointerleave", () => pair(figure.dataset.plane, null));
    svg.addEventListener("dblclick", (event) => zoom(2, within(event)));
    svg.addEventListener("wheel", (event) => {
      if (!event.ctrlKey) return; // without it, the page scrolls
      event.preventDefault();
      zoom(Math.exp(-event.deltaY / 300), within(event));
    }, { passive: false });
    field.addEventListener("keydown", (event) => {
      const acts = {
        "+": () => zoom(1.5), "=": () => zoom(1.5), "-": () => zoom(1 / 1.5), 0: () => zoom(0),
        ArrowLeft: () => move(-.1, 0), ArrowRight: () => move(.1, 0), ArrowUp: () => move(0, -.1), ArrowDown: () => move(0, .1),
      };
      if (event.ctrlKey || event.metaKey || event.altKey || !(event.key in acts)) return;
      event.preventDefault();
      acts[event.key]();
    });
    const button = (text, label, by) => make("button", { type: "button", "aria-label": label, title: label, onclick: () => zoom(by) }, text);
    field.append(svg, make("div", { class: "zoom" }, button("+", "zoom in", 1.5), button("−", "zoom out", 1 / 1.5), button("all", "show all", 0)));
    new ResizeObserver(resize).observe(field);
    resize();
    return { plane: figure.dataset.plane, mark };
  });
  function pair(plane, i) {
    for (const field of fields) if (field.plane === plane) field.mark(i);
  }

  // the section that is read, in the menu
  const nav = $("nav"), links = [...nav.querySelectorAll("a")], sections = links.map((link) => $(link.hash));
  let current = null;
  const follow = () => {
    const line = innerHeight * .35, down = document.documentElement.scrollHeight - innerHeight - scrollY < 2;
    const reached = sections.filter((section) => section.getBoundingClientRect().top <= line).length;
    const link = links[down && scrollY > 0 ? links.length - 1 : Math.max(0, reached - 1)];
    if (link === current) return;
    current?.removeAttribute("aria-current");
    current = link;
    current.setAttribute("aria-current", "true");
    nav.scrollTo({ left: link.offsetLeft - (nav.clientWidth - link.offsetWidth) / 2 });
  };
  addEventListener("scroll", follow, { passive: true });
  addEventListener("resize", follow);
  follow();
})();
