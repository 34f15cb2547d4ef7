// Softmax over the keys of each pixel.
#include "pixels.cuh"

extern "C" __global__ void __launch_bounds__(32 * shares, 1)
    ca_softmax(const __grid_constant__ Softmax a) {
  __shared__ Exchange exchange;
  const Pixel pixel(a.axis);
  // A pixel that is not there has no keys, and takes part in what the block does together.
  const int keys = pixel.is_there ? a.keys : 0;
  const Compute* energy = pixel.find_first<const Compute>(a.energy);
  Compute* attention = pixel.find_first<Compute>(a.attention);

  // NaN is no maximum, and comes back with the sum; so does inf - inf.
  Compute largest = minus_infinity();
  for (long long z = pixel.share; is_inside(z, keys); z += shares)
    largest = max(largest, energy[z * a.energy.channel]);
  largest = exchange.find_max(largest);
  Compute sum = 0;
  for (long long z = pixel.share; is_inside(z, keys); z += shares)
    sum += exp(energy[z * a.energy.channel] - largest);
  sum = exchange.find_sum(sum);
  for (long long z = pixel.share; is_inside(z, keys); z += shares)
    attention[z * a.attention.channel] = exp(energy[z * a.energy.channel] - largest) / sum;
}
