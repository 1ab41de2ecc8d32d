// A button that shows and hides the element it names in aria-controls.

export default function disclose({ element }) {
  element.addEventListener("click", (event) => {
    const button = event.target.closest("[aria-controls]");
    const place = button && document.getElementById(button.getAttribute("aria-controls"));
    if (!place) return;
    const open = place.toggleAttribute("data-open");
    button.setAttribute("aria-expanded", String(open));
  });
}
