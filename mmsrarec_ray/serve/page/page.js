// The page: a history on the left, what follows from it in the middle, a new item on the right.
// Nothing is ever written as HTML: all that comes from the catalogue or a person becomes a text node.

const at = (id) => document.getElementById(id);
const PAGE_SIZE = 24;
const state = { mode: "user", user: null, own: [], offset: 0, turn: 0, search: 0 };

function el(tag, attributes = {}, ...children) {
  const node = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (name.startsWith("on")) node.addEventListener(name.slice(2), value);
    else node.setAttribute(name, value);
  }
  node.append(...children);
  return node;
}

const authorised = () => (at("key").value ? { Authorization: `Bearer ${at("key").value}` } : {});

async function call(method, path, body) {
  const headers = { "Content-Type": "application/json", ...authorised() };
  const answer = await fetch(path, { method, headers, body: body && JSON.stringify(body) });
  const content = answer.status === 204 ? null : await answer.json();
  if (answer.status === 401) at("key-box").open = true;
  if (!answer.ok) throw new Error(content?.error?.message ?? `HTTP ${answer.status}`);
  return content;
}

const itemPath = (id) => `/v1/items/${id.split("/").map(encodeURIComponent).join("/")}`;

function picture(id, title) {
  const image = el("img", { alt: title ? `Picture of ${title}` : "", loading: "lazy" });
  const none = () => image.replaceWith(el("span", { class: "none" }, "no picture"));
  image.addEventListener("error", none);
  const path = `${itemPath(id)}/picture`;
  if (at("key").value) withKey(path, image).catch(none);
  else image.src = path;
  return image;
}

// An image that the browser asks for by itself carries no key.
async function withKey(path, image) {
  const answer = await fetch(path, { headers: authorised() });
  if (!answer.ok) throw new Error(`HTTP ${answer.status}`);
  const address = URL.createObjectURL(await answer.blob());
  image.addEventListener("load", () => URL.revokeObjectURL(address), { once: true });
  image.src = address;
}

const name = (item) => item.title || item.item_id;

// Without an action it is nothing to click.
function tile(item, label, action) {
  const attributes = { type: "button", "aria-label": `${label}: ${name(item)}`, onclick: action };
  const body = action ? el("button", attributes) : el("div");
  body.classList.add("tile");
  body.append(picture(item.item_id, ""), name(item));
  return el("li", {}, body);
}

// The focus would be lost with what has it: the item that follows takes it, and where there is none, the recommendations.
function replace(list, items) {
  const place = [...list.children].findIndex((item) => item.contains(document.activeElement));
  list.replaceChildren(...items);
  if (place < 0) return;
  const next = items[Math.min(place, items.length - 1)];
  (next?.querySelector("button") ?? at("recommended")).focus();
}

function words(item, shared) {
  const chips = item.keywords.map((word) => el("span", shared.has(word) ? { class: "shared" } : {}, word));
  return el("div", { class: "words", "aria-label": "Keywords" }, ...chips);
}

const SOURCES = {
  similar_users: "found through similar users",
  cooccurrence: "found through what is chosen together",
  keywords: "found by its keywords",
  popularity: "found because it is popular",
};

function reasons(item) {
  const why = item.why;
  const lines = [];
  if (why.similar_users) lines.push(`${why.similar_users} of ${why.of} users at a similar point chose it next`);
  if (why.history.length) lines.push(`chosen after ${why.history.map((h) => `${h.title || h.item_id} (${h.count}×)`).join(", ")}`);
  if (why.keywords.length) lines.push(`shares with the history: ${why.keywords.join(", ")}`);
  if (why.liked.length) lines.push(`users of this kind like: ${why.liked.join(", ")}`);
  lines.push(SOURCES[item.source]);
  return el("ul", { class: "why" }, ...lines.map((line) => el("li", {}, line)));
}

function recommended(item, ranked) {
  const score = el("div", { class: "score" });
  if (ranked) score.append(el("meter", { min: 0, max: 1, value: item.score, "aria-label": "Score" }), item.score.toFixed(3));
  const body = el("div", {}, el("h3", {}, `${item.rank}. ${name(item)}`), score, words(item, new Set(item.why.keywords)), reasons(item));
  const choose = el("button", { type: "button", onclick: () => choosing(item), "aria-label": `Choose ${name(item)}` }, "Choose it");
  return el("li", {}, picture(item.item_id, name(item)), body, choose);
}

function wish() {
  return state.mode === "user" ? { user_id: state.user, k: 10 } : { history: state.own.map((item) => item.item_id), k: 10 };
}

async function refresh() {
  const turn = ++state.turn;
  at("status").textContent = "…";
  try {
    const items = await historyItems();
    if (turn !== state.turn) return;  // a newer wish is on its way
    showHistory(items);
    if (state.mode === "user" && !state.user) return say("Pick a user.");
    const answer = await call("POST", "/v1/recommendations", wish());
    if (turn !== state.turn) return;
    replace(at("recommended"), answer.items.map((item) => recommended(item, answer.ranked)));
    const how = answer.degraded ? `in the order of retrieval: the ranker is ${answer.degraded_reason}` : "ranked by the model";
    say(`${answer.items.length} items in ${Math.round(answer.took_ms)} ms, ${how}.`, answer.degraded);
    at("live").textContent = `Bundle ${answer.bundle}`;
  } catch (error) {
    if (turn === state.turn) say(error.message, true);
  }
}

function say(text, warn = false) {
  at("status").textContent = text;
  at("status").classList.toggle("warn", warn);
}

async function historyItems() {
  if (state.mode === "own") return [...state.own].reverse();
  return state.user ? (await call("GET", `/v1/users/${encodeURIComponent(state.user)}`)).history : [];
}

function showHistory(items) {
  const own = state.mode === "own";
  const remove = (item) => () => { state.own = state.own.filter((each) => each !== item); refresh(); };
  replace(at("history"), items.map((item) => tile(item, "Remove", own && remove(item))));
  at("history-note").textContent = items.length ? `the newest first${own ? "; click to remove" : ""}` : "empty";
}

async function choosing(item) {
  if (state.mode === "own") state.own.push(item);
  else if (state.user) {
    const event = { event_id: crypto.randomUUID?.() ?? `${Date.now()}-${Math.random()}`, user_id: state.user, item_id: item.item_id };
    try {
      await call("POST", "/v1/events", { events: [event] });
    } catch (error) {
      return say(error.message, true);
    }
  }
  await refresh();
}

async function catalogue(more = false) {
  const turn = ++state.search, offset = more ? state.offset + PAGE_SIZE : 0;
  const query = new URLSearchParams({ q: at("search").value, offset, limit: PAGE_SIZE });
  try {
    const page = await call("GET", `/v1/items?${query}`);
    if (turn !== state.search) return;
    state.offset = offset;
    const tiles = page.items.map((item) => tile(item, "Put into the history", () => choosing(item)));
    if (more) at("catalogue").append(...tiles);
    else replace(at("catalogue"), tiles);
    at("more").hidden = offset + PAGE_SIZE >= page.total;
  } catch (error) {
    if (turn === state.search) say(error.message, true);
  }
}

const encoded = (file) => new Promise((resolve, reject) => {
  const reader = new FileReader();
  reader.onload = () => resolve(reader.result);
  reader.onerror = () => reject(reader.error);
  reader.readAsDataURL(file);
});

let chosen = null;

async function take(file) {
  chosen = file && file.type.startsWith("image/") ? await encoded(file) : null;
  at("preview").hidden = !chosen;
  if (chosen) at("preview").src = chosen;
  at("drop-text").textContent = chosen ? file.name : "Drop a picture here, or choose one";
}

async function add(event) {
  event.preventDefault();
  const item = { title: at("title").value || null, text: at("text").value || null };
  if (chosen) item.image = chosen.slice(chosen.indexOf(",") + 1);
  at("added").replaceChildren("Reading it …");
  try {
    const id = `new-${Date.now().toString(36)}`;
    const made = await call("PUT", itemPath(id), item);
    const said = made.status === "ready" ? made.keywords.join(", ") : made.error ?? "it waits for its keywords";
    const remove = el("button", { type: "button", onclick: () => removing(id) }, "Delete it again");
    at("added").replaceChildren(`${made.status}: ${said} `, remove);
    at("add").reset();
    await take(null);
    await catalogue();
    await refresh();
  } catch (error) {
    at("added").replaceChildren(error.message);
  }
}

async function removing(id) {
  try {
    await call("DELETE", itemPath(id));
  } catch (error) {
    return say(error.message, true);
  }
  state.own = state.own.filter((item) => item.item_id !== id);
  at("added").replaceChildren("Deleted.");
  at("recommended").focus();
  await catalogue();
  await refresh();
}

function wire() {
  for (const choice of document.querySelectorAll("input[name=mode]")) {
    choice.addEventListener("change", () => {
      state.mode = choice.value;
      at("pick").hidden = state.mode === "own";
      refresh();
    });
  }
  at("pick").addEventListener("submit", (event) => {
    event.preventDefault();
    state.user = at("user").value;
    refresh();
  });
  let typing;
  at("search").addEventListener("input", () => { clearTimeout(typing); typing = setTimeout(catalogue, 200); });
  at("more").addEventListener("click", () => catalogue(true));
  at("add").addEventListener("submit", add);
  at("key").addEventListener("change", load);
  at("picture").addEventListener("change", () => take(at("picture").files[0]));
  for (const kind of ["dragover", "dragleave", "drop"]) {
    at("drop").addEventListener(kind, (event) => {
      event.preventDefault();
      at("drop").classList.toggle("over", kind === "dragover");
      if (kind === "drop") take(event.dataTransfer.files[0]);
    });
  }
}

async function load() {
  try {
    const { users } = await call("GET", "/v1/users?limit=50");
    at("users").replaceChildren(...users.map((user) => el("option", { value: user })));
    const asked = new URLSearchParams(location.search).get("user");
    state.user ??= asked ?? users[0] ?? null;
    at("user").value = state.user ?? "";
    await Promise.all([catalogue(), refresh()]);
  } catch (error) {
    say(error.message, true);
  }
}

wire();
load();
