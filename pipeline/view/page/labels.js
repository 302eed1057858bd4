// Label planes: unpacked, and coloured here, so that switching a class asks nothing of the server.

// Rows are XORed with the row above, then deflated; returns a class id a pixel.
export async function unpackLabels({ labels: packed, rows, columns }) {
  const stream = new DecompressionStream("deflate");
  const writer = stream.writable.getWriter();
  writer.write(packed).catch(() => {}); // the reader below gets the same error
  writer.close().catch(() => {});
  const labels = new Uint8Array(await new Response(stream.readable).arrayBuffer());
  if (labels.length !== rows * columns) throw new Error(`expected ${rows}x${columns} labels`);
  for (let i = columns; i < labels.length; i++) labels[i] ^= labels[i - columns];
  return labels;
}

const littleEndian = new Uint8Array(new Uint32Array([1]).buffer)[0] === 1;

// 256 pixels: what each class id is painted with; nothing for classes that are off or unknown.
export function colourTable(classes, off) {
  const table = new Uint32Array(256);
  classes.forEach(({ name, rgb: [r, g, b] }, id) => {
    if (off.has(name)) return;
    table[id] = littleEndian ? (255 << 24) | (b << 16) | (g << 8) | r : (r << 24) | (g << 16) | (b << 8) | 255;
  });
  return table;
}

// Keeps a canvas with the coloured labels of one camera.
export class Mask {
  constructor() {
    this.canvas = document.createElement("canvas");
    this.context = this.canvas.getContext("2d");
  }

  paint(labels, rows, columns, table) {
    if (this.image?.width !== columns || this.image?.height !== rows) {
      [this.canvas.width, this.canvas.height] = [columns, rows];
      this.image = this.context.createImageData(columns, rows);
      this.pixels = new Uint32Array(this.image.data.buffer);
    }
    const { pixels } = this;
    for (let i = 0; i < labels.length; i++) pixels[i] = table[labels[i]];
    this.context.putImageData(this.image, 0, 0);
  }
}
