import { put, showOffers } from "./offers.js";

const root = document.getElementById("rgpu-wait");
const place = (name) => document.getElementById(`rgpu-wait-${name}`);
const url = `${root.dataset.base}wait?${new URLSearchParams({ user: root.dataset.user, server: root.dataset.server })}`;
const ASK_AGAIN_MS = 2000;

function show(answer) {
  root.hidden = !answer.waits;
  if (!answer.waits) return;
  put(place("title"), answer.title);
  put(place("text"), answer.message);
  put(place("prospects"), answer.prospects);
  showOffers(place("offers"), answer.offers, take);
}

async function take(offer) {
  for (const button of place("offers").querySelectorAll("button")) button.disabled = true;
  put(place("said"), "Asked for that instead.");
  const response = await fetch(url, {
    method: "POST",
    headers: { "Content-Type": "application/json", "X-XSRFToken": window.jhdata.xsrf_token },
    body: JSON.stringify({ fields: offer.fields }),
  }).catch(() => null);
  if (!response?.ok) {
    const answer = await response?.json().catch(() => null);
    put(place("said"), answer?.message || "That could not be asked for: the hub did not answer. Try again.");
    for (const button of place("offers").querySelectorAll("button")) button.disabled = false;
  }
}

async function ask() {
  try {
    const response = await fetch(url, { headers: { Accept: "application/json" } });
    if (response.ok) show(await response.json());
  } catch (error) {
    // The next time tells.
  }
}

setInterval(() => { if (!document.hidden) ask(); }, ASK_AGAIN_MS);
ask();
