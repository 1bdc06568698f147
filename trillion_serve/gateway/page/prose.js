// A model's text as elements: paragraphs, fenced code, `code` and **bold**. Everything else stays as it was written,
// and nothing is ever read as HTML.

const INLINE = /(`[^`\n]+`|\*\*[^*\n]+\*\*)/;

// Show the text in an element. Blocks that did not change keep their elements, so that a long answer streams cheaply
// and a selection in it survives.
export function render(element, text) {
  const blocks = parse(text);
  blocks.forEach((block, index) => {
    const shown = element.children[index];
    const source = `${block.kind} ${block.language} ${block.text}`;
    if (shown?.source === source) return;
    const drawn = block.kind === "code" ? codeBlock(block) : paragraph(block);
    drawn.source = source;
    if (shown) shown.replaceWith(drawn);
    else element.append(drawn);
  });
  while (element.children.length > blocks.length) element.lastElementChild.remove();
}

export function parse(text) {
  const blocks = [];
  let open = null;
  let prose = [];
  const endProse = () => {
    const parts = prose.join("\n").replace(/^\n+|\n+$/g, "").split("\n\n");
    blocks.push(...parts.filter((part) => part.trim()).map((text) => ({ kind: "prose", language: "", text })));
    prose = [];
  };
  for (const line of text.split("\n")) {
    const fence = line.match(/^ {0,3}(`{3,}|~{3,})\s*([^`]*)$/);
    if (open && fence && fence[1].startsWith(open.mark) && !fence[2].trim()) {
      open = null;
    } else if (open) {
      open.block.text += (open.lines++ ? "\n" : "") + line;
    } else if (fence) {
      endProse();
      open = { mark: fence[1], lines: 0, block: { kind: "code", language: fence[2].trim(), text: "" } };
      blocks.push(open.block);
    } else {
      prose.push(line);
    }
  }
  endProse();
  return blocks;
}

function paragraph({ text }) {
  const element = document.createElement("p");
  for (const part of text.split(INLINE)) {
    if (part.length > 2 && part.startsWith("`")) element.append(leaf("code", part.slice(1, -1)));
    else if (part.length > 4 && part.startsWith("**")) element.append(leaf("strong", part.slice(2, -2)));
    else element.append(part);
  }
  return element;
}

function codeBlock({ language, text }) {
  const element = document.createElement("pre");
  element.tabIndex = 0;
  if (language) element.dataset.language = language;
  element.append(leaf("code", text));
  return element;
}

function leaf(name, text) {
  const element = document.createElement(name);
  element.textContent = text;
  return element;
}
