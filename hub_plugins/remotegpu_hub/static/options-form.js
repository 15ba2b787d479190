import { put, showOffers } from "./offers.js";

const root = document.getElementById("remotegpu-form");
const form = root.closest("form");
const place = (name) => document.getElementById(`rgpu-${name}`);
const LOOKS = {
  starts_now: ["alert-success", ""],
  waits: ["alert-warning", "Would wait."],
  refused: ["alert-danger", "Would be refused."],
};
const ASK_AGAIN_MS = 5000;
const TYPING_MS = 200;
let asked = 0;

/** Shows the fields of the chosen part only; the others are sent too, and the hub leaves them out. */
function showPart() {
  const part = root.querySelector("[name=gpu_part]:checked")?.value || "whole";
  for (const element of root.querySelectorAll("[data-part]")) {
    element.hidden = !element.dataset.part.split(" ").includes(part);
  }
}

/** Fills the fields of an offer in: `{name: [values]}`. */
function fill(fields) {
  for (const [name, values] of Object.entries(fields)) {
    for (const input of root.querySelectorAll(`[name="${name}"]`)) {
      if (["checkbox", "radio"].includes(input.type)) input.checked = values.includes(input.value);
      else if (input.type !== "hidden") input.value = values[0] ?? "";
    }
  }
  showPart();
}

function take(offer) {
  fill(offer.fields);
  form.requestSubmit();
}

function quotaRow(bar) {
  const row = document.createElement("div");
  row.className = "mb-1";
  const words = document.createElement("div");
  words.className = "d-flex justify-content-between small";
  const [label, whose, text] = [0, 1, 2].map(() => document.createElement("span"));
  label.textContent = `${bar.label} `;
  whose.className = "text-body-secondary";
  whose.textContent = `(${bar.whose})`;
  text.textContent = bar.text;
  label.append(whose);
  words.append(label, text);
  const progress = document.createElement("progress");
  progress.className = `rgpu-bar rgpu-${bar.level}`;
  progress.max = 100;
  progress.value = bar.percent;
  progress.setAttribute("aria-label", `${bar.label}, ${bar.whose}`);
  row.append(words, progress);
  return row;
}

function show(answer) {
  const [look, heading] = LOOKS[answer.outcome] || ["alert-secondary", ""];
  place("outcome").className = `alert rgpu-outcome ${look}`;
  put(place("outcome-title"), heading);
  put(place("outcome-text"), answer.message || "");
  put(place("home-note"), answer.home_note || "");
  put(place("prospects"), answer.prospects || "");
  showOffers(place("offers"), answer.offers || [], take);
  for (const element of root.querySelectorAll("[data-free]")) {
    const words = (answer.free || {})[element.dataset.free];
    if (words) put(element, words);
  }
  if (answer.share && place("share-free")) put(place("share-free"), answer.share.text);
  if (answer.quota?.length) place("quota").replaceChildren(...answer.quota.map(quotaRow));
}

async function explain() {
  const query = new URLSearchParams();
  for (const [name, value] of new FormData(form)) if (typeof value === "string") query.append(name, value);
  query.set("user", root.dataset.user);
  query.set("server", root.dataset.server);
  const mine = ++asked;
  let answer;
  try {
    const response = await fetch(`${root.dataset.base}explain?${query}`, { headers: { Accept: "application/json" } });
    answer = await response.json();
  } catch (error) {
    answer = { outcome: "unknown", message: "What would happen is not known at the moment: the hub did not answer." };
  }
  if (mine === asked) show(answer);
}

let pending;
root.addEventListener("input", () => {
  showPart();
  clearTimeout(pending);
  pending = setTimeout(explain, TYPING_MS);
});
setInterval(() => { if (!document.hidden) explain(); }, ASK_AGAIN_MS);
showPart();
explain();
