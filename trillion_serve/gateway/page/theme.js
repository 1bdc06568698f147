// Runs before the first paint, so that a page with a chosen theme never flashes the other one.
try {
  const chosen = localStorage.getItem("trillion-serve.theme");
  if (chosen) document.documentElement.dataset.theme = chosen;
} catch {
  // A browser that forbids storage follows the system's theme.
}
