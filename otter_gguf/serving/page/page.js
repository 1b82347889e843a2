// Two texts from one seed, plain and guided, each token on the colour of its reward.

const LOW = [224, 90, 20], MIDDLE = [170, 170, 170], HIGH = [20, 175, 130];
const CANDIDATES = 10;
const $ = (id) => document.getElementById(id);
let props = { otter: { labels: [], rules: [], scales: [] } };
let controller = null;

function make(tag, text, attributes = {}) {
  const element = document.createElement(tag);
  if (text !== undefined) element.textContent = text;
  for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, value);
  return element;
}

function figure(value) { return value === null || value === undefined ? "–" : Number(value).toFixed(3); }

function visible(text) { return JSON.stringify(text); }

// ---- colours

function place(reward, column, origin) {
  const { activation, scale, shift } = props.otter.scales[column];
  if (activation === "none") return 0.5 + 0.5 * Math.tanh((reward - origin) / 2);
  const raw = scale ? (reward - shift) / scale : 0;
  return Math.min(Math.max(activation === "sigmoid" ? raw : (raw + 1) / 2, 0), 1);
}

export function colour(at) {
  const [low, high] = at < 0.5 ? [LOW, MIDDLE] : [MIDDLE, HIGH];
  const share = at < 0.5 ? 2 * at : 2 * at - 1;
  return `rgb(${low.map((part, i) => Math.round(part + (high[i] - part) * share)).join(" ")} / .5)`;
}

function ends(column) {
  const { activation, scale, shift } = props.otter.scales[column];
  if (activation === "none") return ["lower than the prompt", "higher"];
  return [(activation === "tanh" ? shift - scale : shift).toPrecision(2), (shift + scale).toPrecision(2)];
}

function showLegend() {
  const column = $("label").selectedIndex;
  $("legend").hidden = column < 0;
  if (column < 0) return;
  [$("low").textContent, $("high").textContent] = ends(column);
  const stops = Array.from({ length: 11 }, (_, i) => colour(i / 10));
  $("bar").style.background = `linear-gradient(to right, ${stops.join(", ")})`;
}

// ---- one of the two texts

class Column {
  constructor(name) {
    this.name = name;
    this.root = $(name);
    this.text = this.root.querySelector(".text");
    this.clear();
    this.text.addEventListener("keydown", (event) => this.move(event));
    for (const kind of ["mouseover", "focusin"]) {
      this.text.addEventListener(kind, (event) => {
        const at = event.target.dataset?.token;
        if (at !== undefined) this.describe(this.tokens[at]);
      });
    }
  }

  clear() {
    this.messages = [];
    this.text.replaceChildren();
    this.begin();
    this.draw();
  }

  begin() {
    this.tokens = [];
    this.steps = new Map();
    this.origin = 0;
    this.written = 0;
    this.answer = "";
    this.span = null;
    for (const old of this.text.querySelectorAll("[data-token]")) old.removeAttribute("data-token");
  }

  say(text, isChat) {
    if (!isChat) this.text.replaceChildren();
    this.text.append(isChat ? make("b", "you") : "", make("span", text, { class: "prompt" }), isChat ? make("b", "model") : "");
  }

  // A chunk: its text, and the tokens that begin in it. The rest of a token begun before keeps that token's colour.
  add(choice) {
    const letters = Array.from(choice.delta ? choice.delta.content ?? "" : choice.text);
    const rewards = choice.rewards ?? { tokens: [], text_offset: [], token_rewards: [] };
    if (choice.prompt_rewards) this.origin = choice.prompt_rewards.token_rewards.at(-1)[$("label").selectedIndex];
    if (choice.delta?.role) this.origin = rewards.reward ?? 0;
    for (const step of choice.steps ?? []) if (step.candidates) this.steps.set(step.step, step);
    const tops = logprobsOf(choice.logprobs);
    let begin = 0;
    rewards.tokens.forEach((token, i) => {
      const at = Math.min(Math.max(rewards.text_offset[i] - this.written, begin), letters.length);
      this.write(letters.slice(begin, at).join(""));
      begin = at;
      this.open({ token, rewards: rewards.token_rewards[i], ...tops[i] });
    });
    this.write(letters.slice(begin).join(""));
    this.written += letters.length;
    this.draw();
  }

  open(token) {
    token.index = this.tokens.length;
    token.span = this.span = make("span", "", { "data-token": token.index, tabindex: "-1" });
    this.tokens.push(token);
    this.paint(token);
    this.text.append(this.span);
  }

  paint(token) {
    const column = $("label").selectedIndex;
    if (column >= 0) token.span.style.background = colour(place(token.rewards[column], column, this.origin));
  }

  write(text) {
    if (!text) return;
    if (!this.span) this.text.append((this.span = make("span")));
    this.span.append(text);
    this.answer += text;
    this.text.scrollTop = this.text.scrollHeight;
  }

  draw() {
    const column = $("label").selectedIndex, svg = this.root.querySelector("svg");
    const values = column < 0 ? [] : this.tokens.map((token) => token.rewards[column]);
    const low = Math.min(...values, 0), high = Math.max(...values, 0), range = high - low || 1;
    const y = (value) => 57 - 54 * (value - low) / range;
    const points = values.map((value, i) => `${300 * i / Math.max(1, values.length - 1)},${y(value)}`);
    svg.innerHTML = `<line class="zero" x1="0" x2="300" y1="${y(0)}" y2="${y(0)}"/><polyline class="reward" points="${points.join(" ")}"/>`;
    const last = values.length ? `${$("label").value} ${figure(values.at(-1))}, from ${figure(low)} to ${figure(high)}` : "";
    this.root.querySelector("figcaption").textContent = last;
  }

  move(event) {
    const by = { ArrowRight: 1, ArrowLeft: -1, Home: -Infinity, End: Infinity }[event.key];
    if (by === undefined || !this.tokens.length) return;
    event.preventDefault();
    const now = Number(document.activeElement.dataset?.token ?? (by > 0 ? -1 : this.tokens.length));
    this.tokens[Math.min(Math.max(now + by, 0), this.tokens.length - 1)].span.focus();
  }

  describe(token) {
    if (!token) return;
    const labels = props.otter.labels.map((label, i) => `${label} ${figure(token.rewards[i])}`);
    const p = token.logprob === undefined ? [] : [`p ${figure(Math.exp(token.logprob))}`];
    const title = make("p", `${this.name} ${token.index + 1}: ${visible(token.span.textContent)}  ${[...labels, ...p].join("  ")}`);
    const { head, rows } = candidatesOf(this.steps.get(token.index), token);
    const table = make("table");
    table.append(make("tr"));
    table.rows[0].append(...head.map((name) => make("th", name, { scope: "col" })));
    for (const [chosen, ...cells] of rows) {
      const row = make("tr", undefined, chosen ? { class: "chosen" } : {});
      row.append(...cells.map((cell) => make("td", cell)));
      table.append(row);
    }
    $("token").replaceChildren(title, ...(rows.length ? [table] : []));
    $("token").hidden = false;
  }
}

// What else could have been chosen: of a guided step what the rule saw, else the most likely tokens.
function candidatesOf(step, token) {
  if (!step) {
    const rows = (token.top ?? []).map(([text, logprob]) => [false, visible(text), figure(Math.exp(logprob))]);
    return { head: ["most likely", "p"], rows };
  }
  const column = (step.labels ?? []).indexOf($("label").value);
  const most = Math.max(...step.logits), sum = step.logits.reduce((all, logit) => all + Math.exp(logit - most), 0);
  const rows = step.candidates.map((_, i) => [
    i === step.choice, visible(step.pieces[i]), column < 0 ? "–" : figure(step.rewards[i][column]), figure(step.scores[i]),
    figure(Math.exp(step.logits[i] - most) / sum),
  ]);
  return { head: ["candidate", "reward", "score", "p"], rows: rows.filter((row, i) => i < CANDIDATES || row[0]) };
}

function logprobsOf(logprobs) {
  if (!logprobs) return [];
  if (logprobs.content) {
    return logprobs.content.map((one) => ({ logprob: one.logprob, top: one.top_logprobs.map((t) => [t.token, t.logprob]) }));
  }
  return logprobs.token_logprobs.map((logprob, i) => ({ logprob, top: Object.entries(logprobs.top_logprobs[i]) }));
}

const columns = [new Column("plain"), new Column("guided")];

// ---- asking

function headers() {
  const key = $("key").value;
  return { "content-type": "application/json", ...(key && { authorization: `Bearer ${key}` }) };
}

function guidance() {
  const fields = Array.from($("fields").querySelectorAll("input"));
  const given = fields.filter((field) => field.value !== "").map((field) => [field.name, value(field.value)]);
  const rule = { rule: $("rule").value, ...Object.fromEntries(given) };
  if (!$("weight").disabled) rule.weight = Number($("weight").value);
  return rule;
}

function value(text) {
  if (text === "true" || text === "false") return text === "true";
  return text.trim() !== "" && Number.isFinite(Number(text)) ? Number(text) : text;
}

async function stream(column, otter, signal) {
  const isChat = $("mode").value === "chat", text = $("prompt").value;
  column.begin();
  column.say(text, isChat);
  const body = {
    stream: true, seed: Number($("seed").value), max_tokens: Number($("tokens").value),
    temperature: Number($("temperature").value), otter: { ...otter, step_records: Boolean(otter.guidance) },
  };
  if (isChat) Object.assign(body, { messages: [...column.messages, { role: "user", content: text }], logprobs: true, top_logprobs: 5 });
  else Object.assign(body, { prompt: text, logprobs: 5, otter: { ...body.otter, prompt_rewards: true } });
  const path = isChat ? "v1/chat/completions" : "v1/completions";
  const response = await fetch(path, { method: "POST", headers: headers(), body: JSON.stringify(body), signal });
  if (!response.ok) throw new Error((await response.json()).error.message);
  for await (const part of events(response.body)) {
    if (part.error) throw new Error(part.error.message);
    for (const choice of part.choices) column.add(choice);
  }
  if (isChat) column.messages = [...body.messages, { role: "assistant", content: column.answer }];
}

async function* events(body) {
  const reader = body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  for (;;) {
    const { done, value } = await reader.read();
    if (done) return;
    const parts = (rest + value).split("\n\n");
    rest = parts.pop();
    for (const part of parts) {
      if (part.startsWith("data: ") && part !== "data: [DONE]") yield JSON.parse(part.slice(6));
    }
  }
}

async function write(event) {
  event?.preventDefault();
  if (controller || !$("form").reportValidity()) return;
  controller = new AbortController();
  $("error").textContent = "";
  $("go").disabled = true;
  $("stop").disabled = false;
  const [plain, guided] = columns, jobs = [stream(plain, {}, controller.signal)];
  if ($("rule").value) jobs.push(stream(guided, { guidance: guidance() }, controller.signal));
  for (const result of await Promise.allSettled(jobs)) {
    if (result.status === "rejected" && result.reason.name !== "AbortError") $("error").textContent = result.reason.message;
  }
  controller = null;
  $("go").disabled = false;
  $("stop").disabled = true;
}

function stop() { controller?.abort(); }

// ---- what the model offers

function chooseRule() {
  const rule = props.otter.rules.find((one) => one.name === $("rule").value);
  const weight = rule?.fields.find((field) => field.name === "weight");
  $("weight").disabled = !weight;
  $("weight").value = weight ? weight.default : 0;
  showWeight();
  $("meaning").textContent = rule?.meaning ?? "";
  $("fields").replaceChildren(...(rule?.fields ?? []).filter((field) => field !== weight).map((field) => {
    const label = make("label", field.name, { title: field.meaning });
    label.append(make("input", undefined, { name: field.name, placeholder: field.default }));
    return label;
  }));
}

function showWeight() { $("shown-weight").textContent = $("weight").disabled ? "" : Number($("weight").value).toFixed(1); }

async function load() {
  const response = await fetch("props", { headers: headers() });
  if (!response.ok) throw new Error((await response.json()).error.message);
  props = await response.json();
  const { labels, rules, models, vocabulary_heads: heads } = props.otter;
  $("model").textContent = `${props.model_alias}: ${labels.length ? `rewards: ${labels.join(", ")}` : "a plain model"}`;
  if (props.chat_template) $("mode").prepend(make("option", "chat", { value: "chat", selected: "" }));
  $("label").replaceChildren(...labels.map((label) => make("option", label)));
  const usable = rules.filter((rule) => labels.length && (rule.name !== "vocabulary" || heads.length)
    && !rule.fields.some((field) => field.default === "..." && !(field.name === "expert" && models.length)) && !rule.wraps);
  $("rule").replaceChildren(make("option", "nothing", { value: "" }), ...usable.map((rule) => make("option", rule.name)));
  $("rule").value = usable.some((rule) => rule.name === "args") ? "args" : "";
  chooseRule();
  showLegend();
}

// ---- saving

function save() {
  const escape = (text) => text.replace(/[&<>"]/g, (c) => ({ "&": "&amp;", "<": "&lt;", ">": "&gt;", '"': "&quot;" })[c]);
  const parts = columns.map((column) => {
    const spans = Array.from(column.text.children, (child) => {
      const token = column.tokens[child.dataset.token];
      if (!token) return `<span class="${child.className}">${escape(child.textContent)}</span>`;
      const { rows } = candidatesOf(column.steps.get(token.index), token);
      const title = [props.otter.labels.map((label, i) => `${label} ${figure(token.rewards[i])}`).join(" "),
        ...rows.map(([chosen, ...cells]) => `${chosen ? "▸" : " "} ${cells.join(" ")}`)].join("\n");
      return `<span title="${escape(title)}" style="background: ${child.style.background}">${escape(child.textContent)}</span>`;
    });
    return `<h2>${column.name}</h2>\n<div class="text">${spans.join("")}</div>`;
  });
  const page = `<!DOCTYPE html>
<html lang="en"><head><meta charset="utf-8"><title>otter-gguf</title>
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; style-src 'unsafe-inline'">
<style>:root { color-scheme: light dark } body { max-width: 46rem; margin: 2rem auto; font: 1rem/1.7 system-ui }
.text { white-space: pre-wrap; border: 1px solid #888; border-radius: .5rem; padding: 1rem } .prompt { opacity: .7 }</style>
</head><body><h1>${escape(props.model_alias)}</h1>\n${parts.join("\n")}</body></html>\n`;
  const link = make("a", undefined, { download: "otter.html", href: URL.createObjectURL(new Blob([page], { type: "text/html" })) });
  link.click();
  URL.revokeObjectURL(link.href);
}

// ---- events

$("form").addEventListener("submit", write);
$("stop").addEventListener("click", stop);
$("clear").addEventListener("click", () => { stop(); columns.forEach((column) => column.clear()); $("token").hidden = true; });
$("export").addEventListener("click", save);
$("rule").addEventListener("change", chooseRule);
$("weight").addEventListener("input", showWeight);
$("label").addEventListener("change", () => {
  showLegend();
  for (const column of columns) { column.tokens.forEach((token) => column.paint(token)); column.draw(); }
});
$("key").addEventListener("change", () => load().catch(report));
document.addEventListener("keydown", (event) => {
  if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) write(event);
  if (event.key === "Escape") stop();
});

function report(error) { $("error").textContent = error.message; }

load().catch(report);
