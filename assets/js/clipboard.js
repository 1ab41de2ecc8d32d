// What a button is called while it does not say what became of the last press.
const names = new WeakMap();

// Copies `text`; where that is not allowed, `place` is marked, to be copied by hand.
export const copy = async (button, text, place) => {
  if (!names.has(button)) names.set(button, button.textContent);
  try {
    await navigator.clipboard.writeText(text);
    button.textContent = "Copied";
  } catch {
    getSelection().selectAllChildren(place);
    button.textContent = "Marked: press Ctrl+C";
  }
  setTimeout(() => {
    button.textContent = names.get(button);
  }, 2500);
};
