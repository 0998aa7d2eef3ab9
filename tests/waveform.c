/* Predicts a waveform with the SavedModel of an export, through TensorFlow's C API, which TensorFlow Serving loads too.
 *
 * waveform EXPORT SAMPLES INPUT OUTPUT INDEX: SAMPLES is a file of float32, INPUT and OUTPUT name operations of the signature
 * `waveform`, INDEX the output's. Prints one score a line.
 */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <tensorflow/c/c_api.h>

static void check(TF_Status *status, const char *what) {
    if (TF_GetCode(status) != TF_OK) {
        fprintf(stderr, "%s: %s\n", what, TF_Message(status));
        exit(1);
    }
}

static TF_Output find(TF_Graph *graph, const char *name, int index) {
    TF_Output found = {TF_GraphOperationByName(graph, name), index};
    if (found.oper == NULL) {
        fprintf(stderr, "no operation %s\n", name);
        exit(1);
    }
    return found;
}

int main(int argc, char **argv) {
    if (argc != 6) return 2;
    FILE *file = fopen(argv[2], "rb");
    if (file == NULL) return 2;
    fseek(file, 0, SEEK_END);
    int64_t n_samples = ftell(file) / (int64_t)sizeof(float);
    rewind(file);
    TF_Tensor *audio = TF_AllocateTensor(TF_FLOAT, &n_samples, 1, (size_t)n_samples * sizeof(float));
    if (fread(TF_TensorData(audio), sizeof(float), (size_t)n_samples, file) != (size_t)n_samples) return 2;
    fclose(file);

    TF_Status *status = TF_NewStatus();
    TF_Graph *graph = TF_NewGraph();
    TF_SessionOptions *options = TF_NewSessionOptions();
    const char *tags[] = {"serve"};
    TF_Session *session = TF_LoadSessionFromSavedModel(options, NULL, argv[1], tags, 1, graph, NULL, status);
    check(status, argv[1]);

    TF_Output input = find(graph, argv[3], 0), output = find(graph, argv[4], atoi(argv[5]));
    TF_Tensor *scores = NULL;
    TF_SessionRun(session, NULL, &input, &audio, 1, &output, &scores, 1, NULL, 0, NULL, status);
    check(status, "run");
    const float *values = TF_TensorData(scores);
    for (size_t i = 0; i < TF_TensorByteSize(scores) / sizeof(float); i++) printf("%.9g\n", values[i]);

    TF_DeleteTensor(audio);
    TF_DeleteTensor(scores);
    TF_CloseSession(session, status);
    TF_DeleteSession(session, status);
    TF_DeleteSessionOptions(options);
    TF_DeleteGraph(graph);
    TF_DeleteStatus(status);
    return 0;
}
