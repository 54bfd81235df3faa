// The mixer in the page. Gradio runs this once and gives `element`, `props` and `watch`; a new value comes from mixer.py.
//
// Sound is fetched from the wav files in pieces, so that songs of any length play at once and need little memory. The
// pieces of all tracks that belong together are started by one clock, at the same time: tracks cannot drift apart.

const PIECE_S = 4; // seconds that are fetched at once
const AHEAD_S = 8; // seconds that are fetched before they are heard
const SKIP_S = 5; // of the arrow keys
const COLOURS = { mixture: "var(--body-text-color)", vocals: "#d6409f", drums: "#e5720b", bass: "#2f7de1", other: "#17966b" };
const OTHER_COLOURS = ["#8e4ec6", "#c2410c", "#0e8a9e", "#6b8e23"];

/** One track: what is drawn and fetched, and whether it is wanted. */
class Track {
  constructor(value, song) {
    Object.assign(this, value, { song, isMixture: value.name === "mixture", solo: false, mute: false, volume: 1 });
  }

  connect(context) {
    this.gain = context.createGain();
    this.analyser = context.createAnalyser();
    this.gain.connect(this.analyser).connect(context.destination);
  }

  /** Samples of piece `index` as an AudioBuffer. */
  async piece(context, index, signal) {
    const rate = this.song.sampling_rate;
    const first = index * PIECE_S * rate;
    const length = Math.min(PIECE_S * rate, this.song.num_samples - first);
    const begin = this.offset + first * this.num_channels * 2;
    const end = begin + length * this.num_channels * 2;
    const answer = await fetch(this.file.url, { headers: { Range: `bytes=${begin}-${end - 1}` }, signal });
    if (!answer.ok) throw new Error(`${this.name} could not be fetched (${answer.status}). Separate the song again.`);
    let bytes = await answer.arrayBuffer();
    if (answer.status === 200) bytes = bytes.slice(begin, end); // a proxy that knows no ranges
    const samples = new Int16Array(bytes);
    const buffer = context.createBuffer(this.num_channels, length, rate);
    for (let channel = 0; channel < this.num_channels; channel++) {
      const target = buffer.getChannelData(channel);
      for (let i = 0; i < length; i++) target[i] = samples[i * this.num_channels + channel] / 32768;
    }
    return buffer;
  }
}

/** Plays tracks together. Positions are seconds of the song. */
class Player {
  constructor(song, onstate) {
    this.tracks = song.tracks.map((track) => new Track(track, song));
    this.seconds = song.num_samples / song.sampling_rate;
    this.rate = song.sampling_rate;
    this.onstate = onstate;
    this.start = 0; // where it plays from, or will
    this.run = null; // what plays now; another object each time
  }

  get position() {
    const origin = this.run?.origin ?? null;
    const now = origin === null ? this.start : this.context.currentTime - origin;
    return Math.min(this.run?.end ?? this.seconds, Math.max(this.start, now));
  }

  async play() {
    if (!this.context) {
      try {
        this.context = new AudioContext({ sampleRate: this.rate });
      } catch {
        this.context = new AudioContext(); // the browser knows no such rate: it resamples each piece
      }
      this.tracks.forEach((track) => track.connect(this.context));
      this.update();
    }
    const run = (this.run = { origin: null, end: this.start, sources: new Set(), fetching: new AbortController() });
    this.onstate("Loading …");
    try {
      await this.context.resume();
      for (let index = Math.floor(this.start / PIECE_S); index * PIECE_S < this.seconds; index++) {
        const buffers = await Promise.all(this.tracks.map((track) => track.piece(this.context, index, run.fetching.signal)));
        if (this.run !== run) return;
        this.schedule(run, buffers, index * PIECE_S);
        this.onstate("");
        while (this.run === run && this.position < (index + 1) * PIECE_S - AHEAD_S) await sleep(100);
        if (this.run !== run) return;
      }
      while (this.run === run && this.position < this.seconds) await sleep(50);
      if (this.run === run) this.stop(0);
    } catch (error) {
      if (this.run !== run) return;
      this.stop(this.position);
      this.onstate(error instanceof TypeError ? "The connection broke: try again." : error.message);
    }
  }

  /** Start one piece of all tracks, whose samples begin at `begin` of the song. */
  schedule(run, buffers, begin) {
    const from = Math.max(begin, this.start);
    const soon = this.context.currentTime + 0.05;
    if (run.origin === null || run.origin + from < soon) {
      // The first piece, or one that comes too late: then the song waits for it, with all of its tracks.
      this.start = from;
      run.origin = soon - from;
    }
    run.end = Math.min(this.seconds, begin + PIECE_S);
    buffers.forEach((buffer, index) => {
      const source = new AudioBufferSourceNode(this.context, { buffer });
      source.connect(this.tracks[index].gain);
      source.start(run.origin + from, from - begin);
      run.sources.add(source);
      source.onended = () => run.sources.delete(source);
    });
  }

  /** Stop at `position`, from which `play` goes on. */
  stop(position) {
    this.run?.sources.forEach((source) => source.stop());
    this.run?.fetching.abort();
    this.run = null;
    this.start = Math.min(this.seconds, Math.max(0, position));
    this.onstate("");
  }

  toggle() {
    if (this.run) return this.stop(this.position);
    if (this.start >= this.seconds) this.start = 0;
    return this.play();
  }

  seek(position) {
    const wasPlaying = this.run !== null;
    this.stop(position);
    if (wasPlaying && this.start < this.seconds) this.play();
  }

  /** The song itself is heard alone or not at all; of stems those with solo, or if there are none, those not muted. */
  isHeard(track) {
    const [mixture] = this.tracks;
    if (track.isMixture || mixture.solo) return track.isMixture && mixture.solo;
    return this.tracks.some((one) => one.solo) ? track.solo : !track.mute;
  }

  update() {
    if (!this.context) return;
    for (const track of this.tracks) {
      const value = this.isHeard(track) ? track.volume : 0;
      track.gain.gain.setTargetAtTime(value, this.context.currentTime, 0.01); // no click
    }
  }

  close() {
    this.stop(0);
    this.context?.close();
  }
}

/** Buttons, pictures and keys of a player. */
class Desk {
  constructor(root) {
    this.root = root;
    this.view = "waveform";
    this.find(".play").addEventListener("click", () => this.player.toggle());
    for (const button of root.querySelectorAll(".view")) {
      button.addEventListener("click", () => this.showView(button.dataset.view));
    }
    document.addEventListener("pointerdown", () => (this.clicked = true), true);
    document.addEventListener("keydown", (event) => this.onKey(event));
    this.resized = new ResizeObserver(() => this.lanes?.forEach(draw));
    new MutationObserver(() => this.lanes?.forEach(draw)).observe(document.body, { attributeFilter: ["class"] }); // dark
  }

  find(selector) {
    return this.root.querySelector(selector);
  }

  show(song) {
    cancelAnimationFrame(this.frame);
    this.player?.close();
    this.resized.disconnect();
    this.player = song ? new Player(song, (text) => this.onState(text)) : null;
    this.find(".desk").hidden = !song;
    this.find(".empty").hidden = Boolean(song);
    this.lanes = this.player?.tracks.map((track, index) => this.makeLane(track, index)) ?? [];
    this.find(".lanes").replaceChildren(...this.lanes.map((lane) => lane.row));
    if (!song) return;
    this.find(".keys").textContent =
      `Space plays, 1 to ${song.tracks.length - 1} solo, with Shift mute, 0 the song itself, ← and → skip ${SKIP_S} s.`;
    this.lanes.forEach((lane) => this.resized.observe(lane.canvas));
    this.showView(this.view);
    this.update();
    this.follow();
  }

  makeLane(track, index) {
    const make = (tag, className, attributes = {}, ...children) => {
      const node = Object.assign(document.createElement(tag), { className, ...attributes });
      node.append(...children);
      return node;
    };
    const switcher = (className, text, title, field) => {
      const button = make("button", className, { type: "button", textContent: text, title });
      button.addEventListener("click", () => this.flip(track, field));
      button.setAttribute("aria-label", `${title.replace(/ \(.*/, "")}: ${track.name}`);
      return button;
    };
    const buttons = track.isMixture
      ? [switcher("solo original", "Original", "The song itself (0)", "solo")]
      : [
          switcher("solo", "S", `Solo (${index})`, "solo"),
          switcher("mute", "M", `Mute (Shift+${index})`, "mute"),
        ];
    const volume = make("input", "volume", { type: "range", min: 0, max: 1, step: 0.01, value: 1 });
    volume.setAttribute("aria-label", `Volume: ${track.name}`);
    volume.addEventListener("input", () => {
      track.volume = volume.valueAsNumber;
      this.update();
    });
    const name = track.file.orig_name;
    const download = make("a", "download", { href: track.file.url, download: name, title: `Download ${name}` }, "⤓");
    download.setAttribute("aria-label", `Download: ${track.name}`);
    const strip = make("div", "strip", {}, make("span", "name", {}, track.name), ...buttons, download, volume);
    const canvas = make("canvas", "");
    const image = make("img", "", { src: track.spectrogram.url, alt: `Spectrogram: ${track.name}`, draggable: false });
    const head = make("div", "head");
    const picture = make("div", "picture", {}, canvas, image, head);
    this.onDrag(picture);
    const level = make("div", "");
    const row = make("div", "lane", {}, strip, picture, make("div", "meter", {}, level));
    row.dataset.track = track.name;
    row.style.setProperty("--colour", COLOURS[track.name] ?? OTHER_COLOURS[index % OTHER_COLOURS.length]);
    return { track, row, canvas, image, head, level, buttons, loudest: Math.max(...this.player.tracks[0].peaks, 0.01) };
  }

  /** A click or a drag in a picture goes to a place of the song. */
  onDrag(picture) {
    const place = (event) => {
      const { left, width } = picture.getBoundingClientRect();
      return Math.min(1, Math.max(0, (event.clientX - left) / width)) * this.player.seconds;
    };
    picture.addEventListener("pointerdown", (event) => {
      if (event.button !== 0) return;
      picture.setPointerCapture(event.pointerId);
      this.dragged = place(event);
    });
    picture.addEventListener("pointermove", (event) => {
      if (this.dragged !== undefined) this.dragged = place(event);
    });
    picture.addEventListener("pointerup", (event) => {
      if (this.dragged !== undefined) this.player.seek(place(event));
      this.dragged = undefined;
    });
    picture.addEventListener("pointercancel", () => (this.dragged = undefined));
  }

  onKey(event) {
    const { target } = event;
    if (event.code === "Tab") this.clicked = false;
    const writes = target.closest?.("textarea, select, [contenteditable=true]") || target.matches?.("input:not([type=range])");
    if (!this.player || !this.root.isConnected || writes || event.ctrlKey || event.metaKey || event.altKey) return;
    const digit = /^(?:Digit|Numpad)(\d)$/.exec(event.code);
    const track = digit && this.player.tracks[Number(digit[1])];
    if (event.code === "Space" && target !== document.body) {
      // It presses the button that one has gone to by keys, but not the one that was clicked last.
      if (!this.clicked && target.closest("button, a, [role=button]")) return;
      target.blur();
    }
    if (event.code.startsWith("Arrow") && target.matches?.("input")) return;
    if (event.repeat && (event.code === "Space" || track)) return event.preventDefault();
    if (event.code === "Space") this.player.toggle();
    else if (event.code === "ArrowLeft") this.player.seek(this.player.position - SKIP_S);
    else if (event.code === "ArrowRight") this.player.seek(Math.min(this.player.seconds - 0.1, this.player.position + SKIP_S));
    else if (track) this.flip(track, event.shiftKey && !track.isMixture ? "mute" : "solo");
    else return;
    event.preventDefault();
  }

  flip(track, field) {
    track[field] = !track[field];
    if (field === "solo" && track.solo) {
      // The song itself and its stems are never heard together.
      this.player.tracks.forEach((other) => (other.solo &&= other.isMixture === track.isMixture));
    }
    this.update();
  }

  update() {
    this.player.update();
    for (const { track, row, buttons } of this.lanes) {
      row.classList.toggle("silent", !this.player.isHeard(track) && !track.isMixture);
      for (const button of buttons) {
        button.setAttribute("aria-pressed", button.classList.contains("mute") ? track.mute : track.solo);
      }
    }
  }

  showView(view) {
    this.view = view;
    for (const button of this.root.querySelectorAll(".view")) {
      button.setAttribute("aria-pressed", button.dataset.view === view);
    }
    for (const { canvas, image } of this.lanes ?? []) {
      canvas.hidden = view !== "waveform";
      image.hidden = view !== "spectrogram";
    }
    this.lanes?.forEach(draw);
  }

  onState(text) {
    const button = this.find(".play");
    button.textContent = this.player?.run ? "❚❚" : "▶";
    button.setAttribute("aria-label", this.player?.run ? "Pause" : "Play");
    this.find(".state").textContent = text;
  }

  /** Heads, time and levels follow the sound. */
  follow() {
    const position = this.dragged ?? this.player.position;
    this.find(".time").textContent = `${clock(position)} / ${clock(this.player.seconds)}`;
    for (const { track, head, level } of this.lanes) {
      head.style.left = `${(100 * position) / this.player.seconds}%`;
      level.style.transform = `scaleY(${this.player.run ? loudness(track.analyser) : 0})`;
    }
    this.frame = requestAnimationFrame(() => this.follow());
  }
}

function draw({ track, canvas, row, loudest }) {
  const { clientWidth: width, clientHeight: height } = canvas;
  if (!width) return;
  canvas.width = width * devicePixelRatio;
  canvas.height = height * devicePixelRatio;
  const pen = canvas.getContext("2d");
  pen.scale(devicePixelRatio, devicePixelRatio);
  pen.fillStyle = getComputedStyle(row.querySelector(".name")).color;
  const step = width / track.peaks.length;
  for (const [values, opacity] of [[track.peaks, 0.45], [track.levels, 1]]) {
    pen.globalAlpha = opacity;
    values.forEach((value, index) => {
      const bar = Math.max(0.5, (value / loudest) * (height - 4));
      pen.fillRect(index * step, (height - bar) / 2, Math.max(step, 0.5), bar);
    });
  }
}

/** The largest sample of the last moments as a share of 60 dB. */
function loudness(analyser) {
  if (!analyser) return 0;
  const samples = new Float32Array(1024);
  analyser.getFloatTimeDomainData(samples);
  const peak = samples.reduce((most, value) => Math.max(most, Math.abs(value)), 1e-9);
  return Math.min(1, Math.max(0, 1 + (20 * Math.log10(peak)) / 60));
}

function clock(seconds) {
  return `${Math.floor(seconds / 60)}:${String(Math.floor(seconds % 60)).padStart(2, "0")}`;
}

function sleep(milliseconds) {
  return new Promise((resolve) => setTimeout(resolve, milliseconds));
}

const desk = new Desk(element);
element.mixer = desk;
watch("value", () => desk.show(props.value));
desk.show(props.value);
