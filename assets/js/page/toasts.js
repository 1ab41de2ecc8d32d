// gradio puts the number of an answer before the sentence, and names kinds of files in its own way.
const plain = (text) =>
  text
    .replace(/^HTTP \d+: /, "")
    .replace(
      /^Invalid file type: ([^]*)\. Only [^]* allowed\.$/,
      (_, name) => `“${name}” is not a picture that can be read. Use a PNG, JPEG or WebP file.`,
    );
new MutationObserver((changes) => {
  for (const { addedNodes } of changes)
    for (const node of addedNodes)
      for (const text of node.querySelectorAll?.("[data-testid=toast-text]") ?? []) {
        const said = plain(text.textContent.trim());
        if (said !== text.textContent.trim()) text.textContent = said;
      }
}).observe(document.body, { childList: true, subtree: true });
