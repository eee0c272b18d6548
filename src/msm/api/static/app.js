// The status page: polls the node and its models, follows its events. Everything shown comes from the API and is set
// as text, never as markup. The token lives in this tab's session storage only.
"use strict";

const KEY = "msm-token";
const POLL_MS = 2000;
const MOST_EVENTS = 200;
const byId = (id) => document.getElementById(id);

let visit = 0; // counts sign-ins, so that what an earlier one started ends

class Refused extends Error {}

async function call(path, signal) {
  const response = await fetch(path, {
    headers: { authorization: `Bearer ${sessionStorage.getItem(KEY)}` },
    cache: "no-store",
    signal,
  });
  if (response.status === 401) throw new Refused("The node does not know this token.");
  if (!response.ok) throw new Error(`The node answered with status ${response.status}.`);
  return response;
}

function element(name, text, className) {
  const made = document.createElement(name);
  made.textContent = text;
  if (className) made.className = className;
  return made;
}

function size(bytes) {
  if (bytes === undefined || bytes === null) return "";
  const units = ["B", "KiB", "MiB", "GiB", "TiB"];
  let unit = 0;
  while (bytes >= 1024 && unit < units.length - 1) { bytes /= 1024; unit += 1; }
  return `${bytes.toFixed(bytes < 10 && unit > 0 ? 1 : 0)} ${units[unit]}`;
}

const MOOD = { Valid: "good", Ready: "good", Failed: "bad", Backoff: "bad" };
const mood = (state) => MOOD[state] || "wait";

function row(cells) {
  const line = document.createElement("tr");
  for (const [text, className] of cells) line.append(element("td", text, className));
  return line;
}

function copiesByVersion(node) {
  const found = new Map();
  for (const copy of node.copies || []) {
    const known = found.get(copy.version) || { states: new Map(), requests: 0 };
    known.states.set(copy.state, (known.states.get(copy.state) || 0) + 1);
    known.requests += copy.requests || 0;
    found.set(copy.version, known);
  }
  return found;
}

function versionRow(model, version, copies) {
  const { namespace = "default", name } = model.metadata;
  const status = (model.status?.versions || {})[version.name] || { phase: "Pending" };
  const share = (model.status?.traffic || []).find((entry) => entry.version === version.name);
  const aliases = Object.entries(model.spec.aliases || {}).filter(([, target]) => target === version.name);
  const mine = copies.get(`${namespace}/${name}/${version.name}`);
  const states = mine ? [...mine.states].map(([state, count]) => `${count} ${state}`).join(", ") : "cold";
  const phase = status.phase === "Failed" && status.message ? `Failed: ${status.message}` : status.phase;
  return row([
    [namespace === "default" ? name : `${namespace}/${name}`],
    [version.name],
    [phase, mood(status.phase)],
    [status.format || version.format || ""],
    [share ? `${share.weight} %` : "", "number"],
    [aliases.map(([alias]) => alias).join(", ")],
    [states],
    [mine ? String(mine.requests) : "", "number"],
    [size(status.memoryBytes), "number"],
  ]);
}

function showNode(node, models) {
  const used = node.usedBytes || 0;
  byId("node").textContent = `${node.name} · version ${node.version} · gateway ${node.gateway.address}` +
    (node.gateway.connected ? "" : " (not connected)");
  byId("memory").max = node.capacityBytes || 1;
  byId("memory").value = used;
  byId("memory-text").textContent =
    `${size(used)} of ${size(node.capacityBytes)} for models, ${node.queued || 0} loads waiting`;
  const copies = copiesByVersion(node);
  byId("models").replaceChildren(
    ...(models.items || []).flatMap((model) => model.spec.versions.map((v) => versionRow(model, v, copies))));
  byId("workers").replaceChildren(...(node.workers || []).map((worker) => row([
    [worker.id],
    [worker.state, mood(worker.state)],
    [String(worker.copies || 0), "number"],
    [size(worker.rssBytes), "number"],
    [String(worker.restarts || 0), "number"],
    [worker.message || ""],
  ])));
}

function showEvent(event) {
  const line = document.createElement("li");
  const time = element("time", new Date(event.at * 1000).toLocaleTimeString());
  time.dateTime = new Date(event.at * 1000).toISOString();
  const severity = { warning: "wait", error: "bad" }[event.severity] || "";
  line.append(time, element("strong", event.subject, severity), element("span", event.message));
  const list = byId("events");
  list.prepend(line);
  while (list.children.length > MOST_EVENTS) list.lastChild.remove();
}

const pause = (ms) => new Promise((resolve) => setTimeout(resolve, ms));

async function poll(mine, signal) {
  while (mine === visit) {
    try {
      const [node, models] = await Promise.all([
        call("/api/v1/node", signal).then((answer) => answer.json()),
        call("/api/v1/models", signal).then((answer) => answer.json()),
      ]);
      showNode(node, models);
      byId("broken").textContent = "";
    } catch (error) {
      if (mine !== visit) return;
      if (error instanceof Refused) { leave(error.message); return; }
      byId("broken").textContent = `No answer from the node; trying again. ${error.message}`;
    }
    await pause(POLL_MS);
  }
}

async function follow(mine, signal) {
  while (mine === visit) {
    try {
      const coming = await call("/api/v1/events?follow=true&limit=100", signal);
      byId("events").replaceChildren();
      await readEvents(coming);
    } catch (error) {
      if (mine !== visit || error instanceof Refused) return;
    }
    await pause(POLL_MS);
  }
}

async function readEvents(response) {
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  for (;;) {
    const { value, done } = await reader.read();
    if (done) return;
    const parts = (rest + value).split("\n\n");
    rest = parts.pop();
    for (const part of parts) {
      const data = part.split("\n").find((line) => line.startsWith("data: "));
      if (part.includes("event: event") && data) showEvent(JSON.parse(data.slice(6)));
    }
  }
}

let ending = new AbortController();

function enter() {
  const mine = ++visit;
  ending = new AbortController();
  byId("enter").hidden = true;
  byId("state").hidden = false;
  byId("leave").hidden = false;
  poll(mine, ending.signal);
  follow(mine, ending.signal);
}

function leave(why) {
  visit += 1;
  ending.abort();
  sessionStorage.removeItem(KEY);
  byId("state").hidden = true;
  byId("leave").hidden = true;
  byId("node").textContent = "";
  byId("refused").textContent = why;
  byId("enter").hidden = false;
  byId("token").focus();
}

byId("enter").addEventListener("submit", (event) => {
  event.preventDefault();
  sessionStorage.setItem(KEY, byId("token").value.trim());
  byId("token").value = "";
  enter();
});
byId("leave").addEventListener("click", () => leave(""));
if (sessionStorage.getItem(KEY)) enter(); else leave("");
