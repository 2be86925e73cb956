"use strict";
// The model in plain JavaScript: a handful of layers, the learnt prior, the bound. It runs in the
// page and, where the browser allows it, in workers. An activation is {n, h, w, c, data}: n images
// of h rows, w columns and c channels, the channels side by side.

function makeModel(meta, buffer) {
  const halves = new Uint16Array(buffer);
  const classes = meta.num_classes, size = meta.latent_dim, half = size >> 1;

  // The bits of a float16, moved to the place of a float32's, miss a factor of 2 ** 112.
  function tensor(name) {
    const [start, shape] = meta.tensors[name];
    const length = shape.reduce((a, b) => a * b, 1), bits = new Uint32Array(length);
    const floats = new Float32Array(bits.buffer);
    for (let i = 0; i < length; i++) {
      const bit = halves[start + i];
      bits[i] = ((bit & 0x8000) << 16) | ((bit & 0x7fff) << 13);
      floats[i] *= 2 ** 112;
    }
    return floats;
  }

  // Weights are packed once: four outputs side by side, so that `multiply` reads in one direction.
  const packed = new Map();
  function affine(name, taps, fanIn) {
    if (packed.has(name)) return packed.get(name);
    const kernel = tensor(name + "/kernel"), bias = tensor(name + "/bias");
    const outs = bias.length, blocks = Math.ceil(outs / 4), run = fanIn / taps;
    const weights = new Float32Array(taps * blocks * run * 4);
    for (let row = 0; row < fanIn; row++) {
      const tap = Math.floor(row / run), j = row - tap * run;
      for (let out = 0; out < outs; out++) {
        weights[((tap * blocks + (out >> 2)) * run + j) * 4 + (out & 3)] = kernel[row * outs + out];
      }
    }
    const rest = kernel.subarray(fanIn * outs); // the rows of the label, where it has some
    packed.set(name, { weights, bias, outs, taps, run, rest });
    return packed.get(name);
  }

  // Nearly all time is spent here. Each output of a pixel is a sum over `taps` stretches of `run`
  // numbers, `stride` apart. Two pixels and four outputs at a time: eight sums stay in registers.
  function multiply(layer, input, from, pitch, stride, height, width, output, to) {
    const { weights, bias, outs, taps, run } = layer, blocks = Math.ceil(outs / 4);
    for (let block = 0; block < blocks; block++) {
      const out = 4 * block, left = Math.min(4, outs - out);
      for (let y = 0; y < height; y++) {
        for (let x = 0; x < width; x += 2) {
          const next = x + 1 < width ? pitch : 0;
          let a = 0, b = 0, c = 0, d = 0, p = 0, q = 0, r = 0, s = 0;
          for (let tap = 0; tap < taps; tap++) {
            let i = from + (y + tap) * stride + x * pitch, j = (tap * blocks + block) * run * 4;
            for (const end = i + run; i < end; i++, j += 4) {
              const one = input[i], two = input[i + next];
              const k = weights[j], l = weights[j + 1], m = weights[j + 2], n = weights[j + 3];
              a += one * k; b += one * l; c += one * m; d += one * n;
              p += two * k; q += two * l; r += two * m; s += two * n;
            }
          }
          let o = to + (y * width + x) * outs + out;
          output[o] = a + bias[out];
          if (left > 1) output[o + 1] = b + bias[out + 1];
          if (left > 2) output[o + 2] = c + bias[out + 2];
          if (left > 3) output[o + 3] = d + bias[out + 3];
          if (!next) continue;
          o += outs;
          output[o] = p + bias[out];
          if (left > 1) output[o + 1] = q + bias[out + 1];
          if (left > 2) output[o + 2] = r + bias[out + 2];
          if (left > 3) output[o + 3] = s + bias[out + 3];
        }
      }
    }
  }

  function dense(act, name) {
    const fanIn = act.h * act.w * act.c, layer = affine(name, 1, fanIn);
    const data = new Float32Array(act.n * layer.outs);
    multiply(layer, act.data, 0, fanIn, 0, 1, act.n, data, 0);
    return { n: act.n, h: 1, w: 1, c: layer.outs, data };
  }

  function conv(act, name, side) {
    const { n, h, w, c } = act, layer = affine(name, side, side * side * c);
    const data = new Float32Array(n * h * w * layer.outs);
    if (side === 1) {
      multiply(layer, act.data, 0, c, 0, 1, n * h * w, data, 0);
    } else {
      const edge = side >> 1, wide = (w + 2 * edge) * c, from = wide * (h + 2 * edge);
      const frame = new Float32Array(from);
      for (let i = 0; i < n; i++) {
        for (let y = 0; y < h; y++) {
          const row = (i * h + y) * w * c;
          frame.set(act.data.subarray(row, row + w * c), (y + edge) * wide + edge * c);
        }
        multiply(layer, frame, 0, c, wide, h, w, data, i * h * w * layer.outs);
      }
    }
    return { n, h, w, c: layer.outs, data };
  }

  // One image is shared by all labels until a layer sees the label.
  function spread(act, labels) {
    const data = new Float32Array(labels.length * act.h * act.w * act.c);
    for (let i = 0; act.n === 1 && i < labels.length; i++) data.set(act.data, i * act.data.length);
    if (act.n > 1) data.set(act.data);
    return { ...act, n: labels.length, data };
  }

  function addByLabel(act, labels, table) {
    const sum = spread(act, labels), { c, data } = sum, each = data.length / sum.n;
    for (let i = 0; i < data.length; i++) {
      data[i] += table[labels[Math.floor(i / each)] * c + (i % c)];
    }
    return sum;
  }

  function silu(act) {
    return { ...act, data: act.data.map((x) => x / (1 + Math.exp(-x))) };
  }

  function block(act, name) {
    const change = conv(silu(conv(silu(act), name + "/Conv_0", 3)), name + "/Conv_1", 3);
    return { ...act, data: act.data.map((x, i) => x + change.data[i]) };
  }

  // Move every pixel: `place(y, x, channel)` is where it comes from. The moves are found once.
  const moves = new Map();
  function move(act, h, w, c, place) {
    const key = [act.h, act.w, act.c, h, w, c].join(), each = act.h * act.w * act.c;
    if (!moves.has(key)) {
      moves.set(key, Int32Array.from({ length: h * w * c }, (_, i) => {
        const [y, x, k] = place(Math.floor(i / (w * c)), Math.floor(i / c) % w, i % c);
        return y < act.h && x < act.w ? (y * act.w + x) * act.c + k : -1;
      }));
    }
    const from = moves.get(key), data = new Float32Array(act.n * from.length);
    for (let i = 0; i < data.length; i++) {
      const source = from[i % from.length];
      if (source >= 0) data[i] = act.data[Math.floor(i / from.length) * each + source];
    }
    return { n: act.n, h, w, c, data };
  }

  const layers = {
    dense,
    conv,
    block,
    silu,
    relu: (act) => ({ ...act, data: act.data.map((x) => Math.max(x, 0)) }),
    shape: (act, h, w, c) => ({ ...act, h, w, c }),
    fit: (act, h, w) => move(act, h, w, act.c, (y, x, k) => [y, x, k]), // crop, or pad with zeros
    to_depth: (act) => move(act, act.h / 2, act.w / 2, act.c * 4, (y, x, k) => [
      2 * y + Math.floor(k / (2 * act.c)), 2 * x + (Math.floor(k / act.c) & 1), k % act.c]),
    to_space: (act) => move(act, act.h * 2, act.w * 2, act.c / 4, (y, x, k) => [
      y >> 1, x >> 1, (2 * (y & 1) + (x & 1)) * (act.c / 4) + k]),
  };
  const labelled = {
    embed: (act, labels, name) => addByLabel(act, labels, tensor(name + "/embedding")),
    // A dense layer that sees the label too: its last rows are one for each class.
    dense_of_label: (act, labels, name) =>
      addByLabel(dense(act, name), labels, packed.get(name).rest),
  };

  function run(program, act, labels) {
    for (const [kind, ...settings] of program) {
      act = kind in labelled
        ? labelled[kind](act, labels, ...settings) : layers[kind](act, ...settings);
    }
    return act;
  }

  // The learnt prior: couplings that scale and shift one half of the latent, given the other half.
  const prior = meta.flow && {
    mean: tensor("flow/mean"),
    logScale: tensor("flow/log_scale"),
    change(given, labels, number) {
      const name = `flow/couplings_${number}`, rest = size - half;
      let act = { n: labels.length, h: 1, w: 1, c: half, data: given };
      act = silu(labelled.dense_of_label(act, labels, name + "/Dense_0"));
      act = dense(silu(dense(act, name + "/Dense_1")), name + "/Dense_2");
      const [mostScale, mostShift] = meta.flow.bounds;
      return act.data.map((x, i) => {
        const most = i % (2 * rest) < rest ? mostScale : mostShift;
        return most * Math.tanh(x / most);
      });
    },
    forward(latent, labels) {
      const rest = size - half;
      meta.flow.orders.forEach((order, number) => {
        const moved = latent.map((_, i) => latent[i - (i % size) + order[i % size]]);
        const change = this.change(firstHalves(moved), labels, number);
        latent = moved.map((x, i) => {
          const j = 2 * rest * Math.floor(i / size) + (i % size) - half;
          return i % size < half ? x : x * Math.exp(change[j]) + change[j + rest];
        });
      });
      return latent.map((x, i) => {
        const j = labels[Math.floor(i / size)] * size + (i % size);
        return this.mean[j] + Math.exp(this.logScale[j]) * x;
      });
    },
    // Return the latent before the flow, and the log-determinant of the way back.
    inverse(latent, labels) {
      const rest = size - half, logDet = new Float64Array(labels.length);
      latent = latent.map((x, i) => {
        const n = Math.floor(i / size), j = labels[n] * size + (i % size);
        logDet[n] -= this.logScale[j];
        return (x - this.mean[j]) * Math.exp(-this.logScale[j]);
      });
      for (let number = meta.flow.orders.length - 1; number >= 0; number--) {
        const order = meta.flow.orders[number], from = latent;
        const change = this.change(firstHalves(from), labels, number);
        latent = new Float32Array(from.length);
        from.forEach((x, i) => {
          const n = Math.floor(i / size), k = i % size, j = 2 * rest * n + k - half;
          if (k >= half) {
            x = (x - change[j + rest]) * Math.exp(-change[j]);
            logDet[n] -= change[j];
          }
          latent[n * size + order[k]] = x;
        });
      }
      return { latent, logDet };
    },
  };

  function firstHalves(latent) {
    const data = new Float32Array((latent.length / size) * half);
    for (let i = 0; i < data.length; i++) {
      data[i] = latent[Math.floor(i / half) * size + (i % half)];
    }
    return data;
  }

  function logits(latent, labels) {
    const n = latent.length / size;
    return run(meta.decoder, { n, h: 1, w: 1, c: size, data: latent }, labels);
  }

  // Decode one latent under each of the labels: an image of pixel means for each.
  function decode(latent, labels) {
    latent = Float32Array.from(latent);
    if (prior) {
      const act = spread({ n: 1, h: 1, w: 1, c: size, data: latent }, labels);
      latent = prior.forward(act.data, labels);
    }
    const { data } = logits(latent, labels), each = data.length / labels.length;
    return labels.map((_, i) =>
      data.slice(i * each, (i + 1) * each).map((x) => 1 / (1 + Math.exp(-x))));
  }

  // Encode one image under each of the labels: the centre of q(z | x, y) in coordinates in which
  // the prior is N(0, I), and the evidence lower bound there, in nats.
  function encode(image, labels) {
    const [h, w, c] = meta.image_shape;
    const { data: moments } = run(
      meta.encoder, { n: 1, h, w, c, data: Float32Array.from(image) }, labels);
    const mean = new Float32Array(labels.length * size);
    const kl = labels.map((_, i) => {
      let sum = 0;
      for (let k = 0; k < size; k++) {
        let m = moments[2 * size * i + k], v = moments[2 * size * i + size + k];
        if (meta.bounds) {
          const [mostMean, mostLogvar] = meta.bounds;
          m = mostMean * Math.tanh(m / mostMean);
          v = mostLogvar - softplus(mostLogvar - v);
        }
        mean[size * i + k] = m;
        sum += 0.5 * (Math.exp(v) + m * m - 1 - v);
      }
      return sum;
    });
    const { latent, logDet } = prior ? prior.inverse(mean, labels) : { latent: mean };
    const { data } = logits(mean, labels), each = image.length;
    return labels.map((_, i) => {
      let bound = -kl[i] + (prior ? logDet[i] : 0);
      for (let k = size * i; k < size * (i + 1); k++) {
        bound -= 0.5 * (latent[k] * latent[k] - mean[k] * mean[k]);
      }
      for (let k = 0; k < each; k++) {
        bound += image[k] * data[each * i + k] - softplus(data[each * i + k]);
      }
      return { latent: latent.slice(size * i, size * (i + 1)), bound };
    });
  }

  return { decode, encode, tensor };
}

function softplus(x) {
  return Math.max(x, 0) + Math.log1p(Math.exp(-Math.abs(x)));
}

if (typeof document === "undefined") { // in a worker
  let model = null;
  self.onmessage = ({ data: { id, task, args, meta, buffer } }) => {
    if (meta) model = makeModel(meta, buffer);
    else self.postMessage({ id, result: model[task](...args) });
  };
}
