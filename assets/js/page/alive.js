// A studio that ended leaves its last word on the page: say that it does not answer.
const silence = document.createElement("p");
silence.className = "silence";
silence.setAttribute("role", "alert");
let missed = 0;
setInterval(async () => {
  try {
    await fetch("studio/alive", { cache: "no-store", signal: AbortSignal.timeout(4000) });
    missed = 0;
  } catch {
    missed += 1;
  }
  const place = document.getElementById("status");
  if (missed === 2 && place && !silence.isConnected) {
    document.documentElement.dataset.silent = "";
    silence.textContent =
      "The studio does not answer. It was closed, or is very busy;" +
      " this page goes on by itself once it is back.";
    place.append(silence);
  } else if (!missed && silence.isConnected) {
    delete document.documentElement.dataset.silent;
    silence.remove();
  }
}, 2500);
