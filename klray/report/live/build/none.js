export default undefined; // codecs that no klray store has
