// Keeps a growing conversation at its end, but only for a reader who is there.

const NEAR_PX = 40;

export class Follower {
  #follows = true;
  #place = 0;

  constructor(scroller, content, button) {
    this.scroller = scroller;
    this.button = button;
    scroller.addEventListener("scroll", () => this.#scrolled(), { passive: true });
    button.addEventListener("click", () => this.follow());
    const grown = new ResizeObserver(() => (this.#follows ? this.follow() : this.#look(false)));
    grown.observe(scroller);
    grown.observe(content);
  }

  get #atEnd() {
    const { scrollHeight, scrollTop, clientHeight } = this.scroller;
    return scrollHeight - scrollTop - clientHeight < NEAR_PX;
  }

  // Go to the end and stay there until the reader scrolls away.
  follow() {
    this.scroller.scrollTop = this.scroller.scrollHeight;
    this.#place = this.scroller.scrollTop;
    this.#look(true);
  }

  // Stay where the reader is.
  release() {
    this.#follows = false;
  }

  // Only a reader moves up. A place that is no longer the end may just have been overtaken by more text.
  #scrolled() {
    const movedUp = this.scroller.scrollTop < this.#place;
    this.#place = this.scroller.scrollTop;
    this.#look(this.#atEnd || (this.#follows && !movedUp));
  }

  #look(follows) {
    this.#follows = follows;
    this.button.hidden = this.#atEnd;
  }
}
