// The review page. Texts of others come as JSON and go in as text nodes alone; nothing here makes markup of a string.
"use strict";

const TOKEN = new URLSearchParams(location.search).get("token") ?? "";
const SHOWN = {all: "all labels", open: "not reviewed", reviewed: "reviewed", unmatched: "no accepted draw", flagged: "doubtful"};
const DONE = {choose: "chosen", correct: "corrected", reject: "all rejected"};
const by = (id) => document.getElementById(id);
let rows = [];          // the page of labels that the list shows
let current = null;     // the label that is read
let asked = 0;          // counts requests for a label, so that a late answer to an early one is dropped
let editing = false;
let saving = false;     // a key pressed twice reviews one label, not the next one as well

function element(tag, attributes = {}, ...children) {
  const made = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (name === "onclick") made.addEventListener("click", value);
    else if (value !== null) made.setAttribute(name, value);
  }
  made.append(...children.filter((child) => child !== null));
  return made;
}

function text(content) {
  return element("div", {class: "text", dir: "auto"}, content);
}

function say(line, wrong = false) {
  by("status").textContent = line;
  by("status").className = wrong ? "wrong" : "";
}

async function request(path, options = {}) {
  const answer = await fetch(path, {...options, headers: {"X-Judgeseye-Token": TOKEN, ...options.headers}});
  const record = await answer.json();
  if (!answer.ok) throw new Error(record.error);
  return record;
}

function safely(work) {
  return (...values) => work(...values).catch((error) => say(
    error instanceof TypeError ? "no answer: is `review` still running?" : error.message, true));
}

function count(counts) {
  for (const option of by("show").options)
    option.textContent = `${SHOWN[option.value]} (${counts[option.value].toLocaleString("en")})`;
}

async function list(where = {}) {
  const query = new URLSearchParams({show: by("show").value, find: by("find").value, ...where});
  const page = await request(`labels?${query}`);
  count(page.counts);
  if (!page.rows.length && Object.keys(where).length) return false;
  rows = page.rows;
  by("where").textContent = rows.length
    ? `${(page.rank + 1).toLocaleString("en")}–${(page.rank + rows.length).toLocaleString("en")} of ${page.found.toLocaleString("en")}` : "none";
  by("before").disabled = page.rank === 0;
  by("after").disabled = page.rank + rows.length >= page.found;
  by("rows").replaceChildren(...rows.map(listed));
  by("rows").scrollTop = 0;
  return rows.length > 0;
}

function listed(row) {
  const state = DONE[row.review] ?? (row.accepted ? `${row.accepted} of ${row.draws}` : "none accepted");
  const kind = row.review ? "done" : row.accepted ? "" : "none";
  const who = row.annotator_id === null ? "" : ` by ${row.annotator_id}`;
  return element("li", {}, element("button",
    {type: "button", "data-place": row.place, "aria-current": String(row.place === current?.place), onclick: () => open(row.place)},
    element("span", {class: "id", title: row.item_id}, row.item_id), element("span", {class: `state ${kind}`}, state),
    element("small", {}, `label ${row.label}${who}`)));
}

function mark() {
  for (const button of by("rows").querySelectorAll("button")) {
    const here = Number(button.dataset.place) === current?.place;
    button.setAttribute("aria-current", String(here));
    if (here) button.scrollIntoView({block: "nearest"});
  }
}

// What somebody is writing is not lost by a click elsewhere.
function heldBack() {
  if (!editing) return false;
  say("save the correction or leave it first", true);
  document.querySelector("textarea").focus();
  return true;
}

async function read(place) {
  if (heldBack()) return;
  const number = ++asked;
  const label = await request(`label?place=${place}`);
  if (number !== asked || heldBack()) return;
  const moved = current !== null && current.place !== place;
  current = label;
  show();
  mark();
  by("label").scrollTop = 0;
  if (moved && matchMedia("(max-width: 46rem)").matches) by("label").scrollIntoView();
}
const open = safely(read);

function show() {
  editing = false;
  const label = current;
  const who = label.annotator_id === null ? "" : ` by ${label.annotator_id}`;
  const inputs = label.inputs.flatMap(([name, content]) => [element("dt", {}, name), element("dd", {}, text(content))]);
  by("label").replaceChildren(
    element("h2", {}, label.item_id),
    element("p", {class: "facts"}, `${label.dimension} (${label.scale}), label `, element("b", {}, label.label), who,
      ` · label ${(label.place + 1).toLocaleString("en")} of ${label.of.toLocaleString("en")}`,
      label.review ? ` · ${DONE[label.review]}` : ""),
    element("dl", {class: "item"}, ...inputs),
    element("div", {class: "actions"},
      element("button", {type: "button", id: "reject", onclick: () => review("reject")}, "Reject all ", element("kbd", {}, "x")),
      element("button", {type: "button", id: "undo", onclick: () => review("undo"), ...(label.review ? {} : {disabled: ""})},
        "Undo ", element("kbd", {}, "u"))),
    label.corrected === null ? "" : element("section", {class: "corrected", "aria-label": "As corrected"},
      element("h3", {}, "As corrected"), text(label.corrected)),
    element("div", {class: "sides"}, side("accepted", "Accepted: the verdict is the person's label"),
      side("rejected", "Rejected: it is not")));
}

function side(kind, title) {
  const cards = current[kind];
  const more = current.more[kind];
  return element("section", {class: `side ${kind}`, "aria-label": kind}, element("h3", {}, title),
    ...cards.map((draw) => card(draw, kind)),
    cards.length ? null : element("p", {class: "empty"}, "none"),
    more ? element("button", {type: "button", onclick: safely(() => extend(kind))}, `${more} more`) : null);
}

async function extend(kind) {
  const place = current.place;
  const label = await request(`label?place=${place}&${kind}_from=${current[kind].length}`);
  if (current.place !== place || heldBack()) return;
  current[kind].push(...label[kind]);
  current.more[kind] = label.more[kind];
  show();
}

function card(draw, kind) {
  const number = kind === "accepted" ? current.accepted.indexOf(draw) + 1 : null;
  const second = draw.chance === "first" ? "" : `${draw.chance}, `;
  const facts = [`${second}draw ${draw.draw}`, `verdict ${draw.verdict ?? "unreadable"}`, draw.model];
  if (draw.kept) facts.push("kept by the run");
  if (draw.chosen) facts.push(DONE[current.review]);
  const tags = [...draw.flags.map((flag) => flag.replaceAll("_", " "))];
  if (draw.swapped) tags.push("it saw the two texts exchanged");
  if (draw.finish_reason === "length") tags.push("cut off");
  const made = element("article", {class: draw.chosen ? "card chosen" : "card", tabindex: "0"},
    element("p", {}, number && number < 10 ? element("kbd", {}, String(number)) : null, ` ${facts.join(" · ")}`),
    tags.length ? element("p", {class: "tags"}, tags.join(" · ")) : null,
    text(draw.trace || draw.answer || "(no text)"),
    element("div", {class: "actions"},
      kind === "accepted" ? element("button", {type: "button", class: "choose", onclick: () => review("choose", draw)}, "Choose ",
        element("kbd", {}, "Enter")) : null,
      element("button", {type: "button", class: "correct", onclick: () => correct(made)}, "Correct ", element("kbd", {}, "e"))));
  made.draw = draw;
  made.kind = kind;
  return made;
}

function correct(card) {
  if (editing) return;
  editing = true;
  const area = element("textarea", {"aria-label": "Trace, to be corrected", dir: "auto", spellcheck: "true"});
  area.value = card.draw.chosen && current.corrected !== null ? current.corrected : card.draw.trace;
  const save = () => review("correct", card.draw, area.value);
  const leave = () => { show(); focusDraw(0, card.draw); };
  card.replaceChildren(element("p", {}, `It ends in ${card.kind === "accepted" ? card.draw.verdict : `the person's label, ${current.label}`}.`),
    area, element("div", {class: "actions"},
      element("button", {type: "button", class: "save", onclick: save}, "Save ", element("kbd", {}, "Ctrl Enter")),
      element("button", {type: "button", onclick: leave}, "Leave it ", element("kbd", {}, "Esc"))));
  area.addEventListener("keydown", (event) => {
    if (event.key === "Escape") leave();
    else if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) save();
    else return;
    event.preventDefault();
    event.stopPropagation();
  });
  area.focus();
}

const review = safely(async (action, draw = null, trace = null) => {
  if (saving || (action !== "correct" && heldBack())) return;
  saving = true;
  try {
    const {place, item_id: item} = current;
    const {row, counts} = await request("review", {method: "POST", headers: {"Content-Type": "application/json"},
      body: JSON.stringify({place, action, chance: draw?.chance, draw: draw?.draw, trace})});
    const at = rows.findIndex((one) => one.place === place);
    if (at >= 0) {
      rows[at] = row;
      by("rows").children[at].replaceWith(listed(row));
    }
    count(counts);
    editing = false;
    if (action === "undo" || !(await step(1))) await read(place);
    say(`${item}: ${DONE[row.review] ?? "as the run kept it"}; saved`);
  } finally {
    saving = false;
  }
});

async function step(by_) {
  const at = rows.findIndex((row) => row.place === current?.place);
  const next = rows[at + by_];
  if (next) { await read(next.place); return true; }
  if (!current) return false;
  if (!(await list(by_ > 0 ? {after: current.place} : {before: current.place}))) return false;
  await read(rows[by_ > 0 ? 0 : rows.length - 1].place);
  return true;
}

const walk = safely(async (by_) => {
  if (!(await step(by_))) say(by_ > 0 ? "this is the last label" : "this is the first label");
});

const openNext = safely(async () => {
  by("show").value = "open";
  if (await list({after: current?.place ?? -1}) || await list()) await read(rows[0].place);
  else say("every label is reviewed");
});

const refresh = safely(async () => {
  if (await list()) await read(rows[0].place);
  else if (!heldBack()) { current = null; by("label").replaceChildren(element("p", {class: "empty"}, "No such label.")); }
});

function focusDraw(by_, draw = null) {
  const cards = [...document.querySelectorAll(".card")];
  const at = draw ? cards.findIndex((card) => card.draw === draw) : cards.indexOf(document.activeElement.closest(".card"));
  const card = cards[Math.min(Math.max(at + by_, 0), cards.length - 1)];
  card?.focus();
  card?.scrollIntoView({block: "nearest"});
}

function help() {
  by("help").hidden = !by("help").hidden;
  by("help-button").setAttribute("aria-expanded", String(!by("help").hidden));
}

const KEYS = {
  j: () => walk(1), k: () => walk(-1), ArrowRight: () => focusDraw(1), ArrowLeft: () => focusDraw(-1), n: openNext,
  x: () => current && review("reject"), u: () => current?.review && review("undo"), "?": help,
  "/": () => by("find").focus(),
  e: () => { const card = document.activeElement.closest(".card") ?? document.querySelector(".card"); if (card) correct(card); },
  Enter: () => {
    const card = document.activeElement.closest(".card");
    if (card?.kind === "accepted") review("choose", card.draw);
    else if (card) say("its verdict is not the person's label: correct it, or choose another", true);
  },
};

document.addEventListener("keydown", (event) => {
  if (event.ctrlKey || event.metaKey || event.altKey || event.isComposing) return;
  const inField = event.target.matches("input, textarea, select");
  if (inField) {
    if (event.key === "Escape" && event.target.id === "find") by("label").focus();
    return;
  }
  if (event.key === "Enter" && event.target.matches("button")) return;
  const action = KEYS[event.key] ?? (/^[1-9]$/.test(event.key)
    ? () => document.querySelectorAll(".side.accepted .card")[Number(event.key) - 1]?.focus() : null);
  if (!action) return;
  event.preventDefault();
  action();
});

by("show").replaceChildren(...Object.entries(SHOWN).map(([value, name]) => element("option", {value}, name)));
by("show").addEventListener("change", refresh);
let typing = 0;
by("find").addEventListener("input", () => { clearTimeout(typing); typing = setTimeout(refresh, 200); });
by("before").addEventListener("click", safely(() => list({before: rows[0].place})));
by("after").addEventListener("click", safely(() => list({after: rows[rows.length - 1].place})));
by("help-button").addEventListener("click", help);
window.addEventListener("beforeunload", (event) => { if (editing) event.preventDefault(); });
refresh();
