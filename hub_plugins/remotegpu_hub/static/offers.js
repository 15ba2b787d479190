/** Puts words into an element; the same words again would be read out again. */
export function put(element, words) {
  if (element.textContent !== words) element.textContent = words;
}

/** Shows each counter-offer as a button; the same ones again keep the keyboard's focus. */
export function showOffers(place, offers, take) {
  const words = JSON.stringify(offers);
  if (place.dataset.offers === words) return;
  place.dataset.offers = words;
  place.replaceChildren(...offers.map((offer) => {
    const button = document.createElement("button");
    button.type = "button";
    button.className = "btn btn-sm btn-success me-1 mb-1 rgpu-offer";
    button.textContent = `${offer.message} Start that`;
    button.addEventListener("click", () => take(offer));
    return button;
  }));
}
