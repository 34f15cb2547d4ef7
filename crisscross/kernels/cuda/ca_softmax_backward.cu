// Gradient of the softmax over the keys of each pixel.
#include "pixels.cuh"

extern "C" __global__ void __launch_bounds__(32 * shares)
    ca_softmax_backward(const __grid_constant__ Softmax a) {
  __shared__ Exchange exchange;
  const Pixel pixel(a.axis);
  // A pixel that is not there has no keys, and takes part in what the block does together.
  const int keys = pixel.is_there ? a.keys : 0;
  const Compute* attention = pixel.find_first<const Compute>(a.attention);
  const Compute* dattention = pixel.find_first<const Compute>(a.dattention);
  Compute* denergy = pixel.find_first<Compute>(a.denergy);

  Compute sum = 0;
  for (long long z = pixel.share; is_inside(z, keys); z += shares)
    sum += attention[z * a.attention.channel] * dattention[z * a.dattention.channel];
  sum = exchange.find_sum(sum);
  for (long long z = pixel.share; is_inside(z, keys); z += shares)
    denergy[z * a.denergy.channel] =
        attention[z * a.attention.channel] * (dattention[z * a.dattention.channel] - sum);
}
